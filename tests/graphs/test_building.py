"""The worker that builds graphs may be started before anybody asks it, and does not outlive who started it."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import psutil
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.graphs.building import begun, started_early
from coldpress.passes.press import Press
from coldpress.target import Target


def workers():
    return [one for one in psutil.Process().children() if "coldpress.graphs.worker" in one.cmdline()]


@pytest.mark.parametrize("early", [started_early, nullcontext])
def test_a_graph_comes_from_one_worker_started_early_or_not(tiny_model, tmp_path, early):
    request = {**Press().request(Target()), "exporter": "mobius", "slots": []}
    with early():
        before = workers()
        with begun(tiny_model, tmp_path, request) as graph:
            assert len(workers()) == 1
            assert set(before) <= set(workers())
            layouts, built = graph.result()
    assert [layout.data for layout in layouts] == ["model.onnx.data"]
    assert built.architecture == "LlamaForCausalLM"
    assert {"model.onnx", "genai_config.json", "tokenizer.json"} <= {file.name for file in tmp_path.iterdir()}
    assert workers() == []


def test_a_worker_that_is_not_asked_is_ended(tiny_model, tmp_path):
    with started_early():
        assert len(workers()) == 1
    assert workers() == []
    broken = tmp_path / "model"
    broken.mkdir()
    for file in tiny_model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ColdpressError, match="not valid Jinja"):
        coldpress.optimize(
            str(broken), str(tmp_path / "out"), algorithm="rtn", no_verify=True, cache_dir=str(tmp_path / "cache")
        )
    assert workers() == []


def test_a_worker_that_cannot_start_says_why(tiny_model, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho a library is missing >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with (
        pytest.raises(ColdpressError, match="a library is missing"),
        begun(tiny_model, tmp_path, {**Press().request(Target()), "exporter": "mobius", "slots": []}) as graph,
    ):
        graph.result()
