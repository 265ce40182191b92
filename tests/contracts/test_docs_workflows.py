"""The examples of docs/workflows.md and docs/places.md are what they say: each is read whole, and the first and Olive's are run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import coldpress
from coldpress.workflow.file import load_workflow
from coldpress.workflow.olive.reading import grouped
from coldpress.workflow.olive.translation import translate

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PLACES = ((DOCS / name).read_text(encoding="utf-8") for name in ("workflows.md", "places.md"))
WORKFLOWS, ELSEWHERE = (
    [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S)] for page in (PAGE, PLACES)
)
[OLIVES] = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S)]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda one: one["output"])
def test_workflows_are_read(workflow):
    load_workflow(workflow)


@pytest.mark.parametrize("workflow", ELSEWHERE)
def test_workflows_for_other_places_are_read(workflow):
    load_workflow(workflow)


def test_the_first_workflow_runs(tiny_model, tmp_path):
    workflow = {**WORKFLOWS[0], "model": str(tiny_model), "output": str(tmp_path / "out"), "verify": {"enabled": False}}
    assert coldpress.run(workflow, cache_dir=tmp_path / "cache").exit_code == 0
    assert (tmp_path / "out/model.onnx").exists()


def test_olives_configuration_is_translated_with_the_notes_that_are_shown():
    translation = translate(OLIVES)
    assert not translation.problems
    assert grouped(translation.notes) == re.findall(r"^note: (.*)$", PAGE, re.M)
    assert [step["type"] for step in translation.workflow["passes"]] == ["quantize", "press"]


@pytest.mark.full
def test_olives_configuration_runs(tiny_model, tmp_path):
    config = json.loads(json.dumps(OLIVES).replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_model)))
    config["engine"] |= {"output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache")}
    workflow = load_workflow(config)
    report = coldpress.run(workflow)
    assert report.data["verdict"] in ("verified", "worse than tolerance")  # a random model loses much
    assert {layer["bits"] for layer in report.data["layers"]} == {4, 8}  # the head has 8


def test_the_mistake_that_is_shown_is_told_so(tmp_path):
    text = yaml.safe_dump(WORKFLOWS[0], sort_keys=False).replace("precision", "precison")
    (tmp_path / "smollm2.yaml").write_text(text)
    with pytest.raises(coldpress.ColdpressError) as caught:
        load_workflow(tmp_path / "smollm2.yaml")
    place = re.sub(r"line \d+", "line 4", caught.value.message)
    assert f"error: {place}\nhint: {caught.value.hint}" in PAGE
