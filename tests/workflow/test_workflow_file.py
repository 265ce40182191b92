"""Workflow files: what is read, what is refused, and how the place of a mistake is told."""

from __future__ import annotations

import itertools
import json

import pytest

from coldpress import ColdpressError
from coldpress.workflow import Measure, Package, Place, Step, Workflow
from coldpress.workflow.file import load_workflow


@pytest.fixture
def load(tmp_path):
    def from_text(text, name="w.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return load_workflow(tmp_path / name)

    return from_text


def refusal(load, text, name="w.yaml"):
    with pytest.raises(ColdpressError) as caught:
        load(text, name)
    return caught.value


def test_parts_may_be_named_alone(load):
    workflow = load("model: x\npasses: [press]\nmetrics: [size]\npackaging: [zipfile]\nsystem: azure_ml\n")
    assert workflow.passes == (Step("press"),)
    assert workflow.metrics == (Measure("size"),)
    assert workflow.packaging == (Package("zipfile"),)
    assert workflow.system == Place("azure_ml")


def test_a_file_equals_its_data(load):
    data = {"model": "x", "passes": [{"type": "press", "parameters": {"precision": "int8"}}], "seed": 3}
    assert load(json.dumps(data, indent="\t"), "w.json") == load(json.dumps(data)) == load_workflow(data)


def test_a_workflow_written_is_the_workflow_read(load):
    workflow = load("model: x\npasses: [press]\nmetrics: [size]\nsearch: {sampler: grid}\nrun: {log_to_file: true}\n")
    assert load(workflow.to_yaml()) == workflow


@pytest.mark.parametrize(
    ("target", "device", "provider"),
    [
        ("{device: gpu}", "gpu", "CUDAExecutionProvider"),
        ("{provider: Dml}", "gpu", "DmlExecutionProvider"),
        ("{threads: 2}", "cpu", "CPUExecutionProvider"),
    ],
)
def test_a_target_is_completed(load, target, device, provider):
    found = load(f"model: x\ntarget: {target}\n").target
    assert (found.device, found.provider) == (device, provider)


def test_numbers_are_read_as_json_reads_them(load):
    text = "model: x\npasses: [{type: press, parameters: {block_size: {choice: [32, 64]}}}]\nsearch: {minutes: 1e-1}\n"
    assert load(text).search.minutes == 0.1


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("model: x\npases: []", "w.yaml, line 2: pases: there is no 'pases' here", "passes"),
        ("model: x\nverify:\n  toleranc: 1", "w.yaml, line 3: verify.toleranc", "tolerance"),
        ("model: x\npasses:\n- press\n- type: rotat", "w.yaml, line 4: passes[1].type: unknown pass 'rotat'", "rotate"),
        ("model: x\npasses:\n- type: press\n  parametrs: {}", "line 4: passes[0].parametrs", "parameters"),
        (
            "model: x\npasses:\n- type: press\n  parameters:\n    precision: int5",
            "line 5: passes[0].parameters.precision: 'int5' is not a choice",
            "int",
        ),
        ("model: x\npasses:\n- type: press\n  parameters: {block_size: big}", "passes[0].parameters.block_size", ""),
        ("passes: []", "model", ""),
        ("model: x\nmetrics: [sise]", "line 2: metrics[0].type", "size"),
        ("model: x\nmetrics: [{type: perplexity, parameters: {window: 3}}]", "metrics[0].parameters.window", "windows"),
        ("model: x\nsystem: dokcer", "line 2: system.type", "docker"),
        ("model: x\nsystem: {type: docker, parameters: {img: x}}", "system.parameters.img", "image"),
        ("model: x\ntarget: {device: cpuu}", "line 2: target: unknown device 'cpuu'", "cpu"),
        ("model: x\ntarget: {devise: cpu}", "target.devise", "device"),
        ("model: x\nrun: {log_level: 7}", "run.log_level: 7 is not a choice", "0"),
        ("model: x\npackaging: [{type: tarball}]", "packaging[0].type", "zipfile"),
        ("model: x\npasses: [{parameters: {}}]", "passes[0]: this step names no pass", "type"),
        ("model: x\npasses: [{type: press, any_of: [press]}]", "passes[0]", ""),
        ("model: x\npasses: [{any_of: [{type: press}, {type: pres}]}]", "passes[0].any_of[1].type", "press"),
        ("model: x\npasses: [{type: press, parameters: {block_size: {choice: []}}}]", "block_size.choice", "values"),
        ("model: x\npasses: [{type: press, parameters: {block_size: {choice: [32, 33]}}}]", "33 is not a choice", "32"),
        ("model: x\nmodel: y", "w.yaml, line 2: the key 'model' stands there twice", ""),
        ("- model", "holds no workflow", "mapping"),
        ("model: [", "neither YAML nor JSON", ""),
    ],
)
def test_a_mistake_is_told_with_its_place(load, text, message, hint):
    error = refusal(load, text)
    assert message in error.message
    assert hint in (error.hint or "")


def test_mistakes_in_json_are_placed_too(load):
    assert "w.json, line 3: pases" in refusal(load, '{\n\t"model": "x",\n\t"pases": []\n}', "w.json").message
    assert "line 2: not valid JSON" in refusal(load, '{"model":\n}', "w.json").message
    assert "'model' stands there twice" in refusal(load, '{"model": 1, "model": 2}', "w.json").message


def test_plain_data_has_no_file_to_name():
    with pytest.raises(ColdpressError, match=r"^pases: there is no 'pases' here"):
        load_workflow({"model": "x", "pases": []})


def test_aliases_of_aliases_take_no_time(load):
    names = "abcdefghijklmnop"
    lines = [f"{one}: &{one} [{', '.join(['*' + before] * 9)}]" for before, one in itertools.pairwise(names)]
    assert "there is no" in refusal(load, "\n".join(["a: &a [x]", *lines])).message


def test_every_key_says_what_it_is_for():
    import dataclasses

    from coldpress import workflow

    for cls in (
        Workflow,
        Step,
        Measure,
        workflow.Goal,
        workflow.Search,
        workflow.Verify,
        Place,
        Package,
        workflow.Running,
    ):
        for field in dataclasses.fields(cls):
            assert len(field.metadata.get("help", "")) > 5, (cls, field.name)
