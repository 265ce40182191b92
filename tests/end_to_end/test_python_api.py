"""The Python API: the same names and defaults as the flags."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest

import coldpress


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_optimize_gives_a_report_and_a_model(tiny_model, tmp_path):
    report = coldpress.optimize(tiny_model, tmp_path / "out", algorithm="rtn", no_verify=True)
    assert report.exit_code == 0
    assert report.data["verdict"] == "unverified"
    assert (tmp_path / "out/model.onnx").exists()
    assert json.loads((tmp_path / "out/report.json").read_text())["layers"]
    assert {layer["algorithm"] for layer in report.data["layers"]} == {"rtn"}


def test_a_plain_workflow_runs(tiny_model, tmp_path):
    workflow = {
        "model": str(tiny_model),
        "output": str(tmp_path / "out"),
        "passes": [{"type": "press", "parameters": {"precision": "int8"}}],
        "verify": {"tolerance": "kl=1,ppl=2,top1=0,generation=0"},
        "metrics": ["size"],
    }
    report = coldpress.run(workflow)
    assert report.data["verdict"] == "verified"
    assert {layer["bits"] for layer in report.data["layers"]} == {8}


def test_a_wrong_option_is_refused_with_the_closest(tiny_model):
    with pytest.raises(coldpress.ColdpressError) as caught:
        coldpress.optimize(tiny_model, blocksize=32)
    assert "block_size" in caught.value.hint


def test_plan_and_run_pass_and_evaluate(tiny_model, tmp_path):
    assert coldpress.plan(tiny_model, precision="int8")["output_bytes"] > 0
    report = coldpress.run_pass("press", tiny_model, tmp_path / "out", precision="fp32")
    assert report.data["layers"] == []
    rows = coldpress.evaluate(tmp_path / "out", tiny_model, metrics=("size", "perplexity"))
    assert rows[0]["perplexity"]["perplexity"] == pytest.approx(rows[1]["perplexity"]["perplexity"], rel=1e-4)


#: what only a terminal needs, and what belongs to the target
OF_THE_TERMINAL = {"as_json", "log_level", "debug", "dry_run"}
OF_THE_TARGET = {"device", "provider", "threads"}


def test_flags_and_arguments_have_the_same_names_and_defaults():
    from coldpress.api import optimize_workflow
    from coldpress.cli.auto_opt import command
    from coldpress.passes.press import Press

    functions = (coldpress.optimize, optimize_workflow)
    arguments = {
        name: p.default for function in functions for name, p in inspect.signature(function).parameters.items()
    }
    parameters = {field.name for field in dataclasses.fields(Press)}
    for flag in command.params:
        if flag.name in OF_THE_TERMINAL | OF_THE_TARGET | parameters:
            continue
        assert flag.name in arguments, flag.name
        if isinstance(flag.default, str | int):
            assert flag.default == arguments[flag.name], flag.name
        elif not flag.required:
            assert arguments[flag.name] in (None, False, ()), flag.name
