"""The schema for editors takes what runs, and complains of slips."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from coldpress import parts
from coldpress.workflow.file import load_workflow
from coldpress.workflow.json_schema import workflow_schema


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(json.dumps(workflow_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


GOOD = [
    {"model": "x"},
    {"$schema": "./schema.json", "model": "x", "passes": ["press"], "metrics": ["size"], "system": "local"},
    {"model": "x", "passes": [{"type": "press", "parameters": {"precision": "int8", "symmetric": None}}]},
    {"model": "x", "passes": [{"type": "press", "parameters": {"block_size": {"choice": [32, 64]}}}]},
    {"model": "x", "passes": [{"type": "quantize", "parameters": {"target_bits": {"range": [3.5, 5.0]}}}]},
    {"model": "x", "passes": [{"any_of": ["press", {"type": "rotate"}], "optional": True}]},
    {"model": "x", "metrics": [{"type": "size", "goals": {"model_bytes": {"priority": 1, "max_degradation": "1%"}}}]},
    {"model": "x", "search": {"sampler": "grid", "trials": 3}, "packaging": [{"type": "dockerfile", "name": "m"}]},
    {"model": "x", "system": {"type": "azure_ml", "parameters": {"compute": "c"}}, "run": {"log_level": 1}},
]
BAD = [
    ({"model": "x", "pases": []}, "pases"),
    ({"passes": []}, "model"),
    ({"model": "x", "passes": ["pres"]}, "pres"),
    ({"model": "x", "passes": [{"type": "press", "parameters": {"blok_size": 32}}]}, "blok_size"),
    ({"model": "x", "passes": [{"type": "press", "parameters": {"precision": "int5"}}]}, "int5"),
    ({"model": "x", "passes": [{"type": "press", "parameters": {"block_size": {"choices": [32]}}}]}, "choices"),
    ({"model": "x", "target": {"device": "cup"}}, "cup"),
    ({"model": "x", "system": {"type": "azure_ml", "parameters": {"compte": "c"}}}, "compte"),
    ({"model": "x", "run": {"log_level": 7}}, "7"),
]


@pytest.mark.parametrize("document", GOOD, ids=str)
def test_what_runs_is_valid(validator, document):
    assert not [error.message for error in validator.iter_errors(document)]
    load_workflow(document)


@pytest.mark.parametrize(("document", "slip"), BAD, ids=str)
def test_a_slip_is_told(validator, document, slip):
    assert any(slip in error.message for error in validator.iter_errors(document))


def test_a_resolved_workflow_is_valid(validator):
    from coldpress.parts.schema import plain

    workflow = load_workflow({"model": "x", "passes": ["press", "quantize_onnx"], "metrics": ["size"]})
    assert validator.is_valid(json.loads(json.dumps(plain(workflow.resolved()))))


def test_the_examples_of_the_documentation_are_valid(validator):
    page = (Path(__file__).parents[2] / "docs/workflows.md").read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", page, re.S):
        assert not [error.message for error in validator.iter_errors(yaml.safe_load(block))]


def test_a_translated_configuration_is_valid(validator):
    from coldpress.workflow.olive.translation import translate

    file = Path(__file__).with_name("olive") / "documents/suite.json"
    workflow = translate(json.loads(file.read_text(encoding="utf-8"))).workflow
    assert not [error.message for error in validator.iter_errors(json.loads(json.dumps(workflow)))]


def test_every_part_is_in_it():
    definitions = workflow_schema()["$defs"]
    for kind in ("passes", "metrics", "systems"):
        for name in parts.names(kind):
            described = definitions[f"{kind}.{name}"]
            assert not described["additionalProperties"]
            assert all(value.get("description") for value in described["properties"].values()), name
