"""Generation and memory are measured with onnxruntime-genai; answers are greedy."""

from __future__ import annotations

import pytest

from coldpress.errors import ColdpressError
from coldpress.metrics.generation import Generation
from coldpress.metrics.memory import Memory
from coldpress.networks.reference import Reference
from coldpress.serving.engine import Engine, Sampling


def test_speeds_are_promised_and_positive(pressed, context):
    numbers = Generation(prompt_tokens=20, new_tokens=6, repeats=2).measure(pressed("int4"), context)
    assert all(numbers[name] > 0 for name in Generation.values)
    assert (numbers["prompt_tokens"], numbers["threads"]) == (20, 2)


def test_memory_of_a_fresh_process(pressed, context):
    numbers = Memory(prompt_tokens=20, new_tokens=4).measure(pressed("int4"), context)
    assert numbers["peak_memory_mb"] > 10
    assert numbers["peak_anonymous_mb"] is None or 1 < numbers["peak_anonymous_mb"] <= numbers["peak_memory_mb"]


def test_a_failing_process_is_an_error_of_the_work(pressed, context, tmp_path):
    import shutil

    from coldpress.models.model import Model

    shutil.copytree(pressed("int4").path, tmp_path / "broken")
    (tmp_path / "broken" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ColdpressError, match="measures memory") as caught:
        Memory().measure(Model(tmp_path / "broken", "onnx", "broken"), context)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("metric", [Generation(), Memory()])
def test_a_folder_without_genai_config_is_refused(metric, tiny_source, context):
    with pytest.raises(ColdpressError, match=r"genai_config\.json"):
        metric.measure(tiny_source, context)


def test_answers_are_greedy(pressed, tiny_source):
    prompt = [0, 40, 41, 42, 90]
    result = Engine(pressed("fp32").path, threads=2).generate(prompt, Sampling(8)).finished()
    expected = Reference(tiny_source.path).greedy(prompt, 8)
    assert result.tokens == expected[: len(result.tokens)]
    assert result.stopped == (result.tokens[-1] == 1)
    assert len(result.decode_s) == len(result.tokens) - 1
    assert 0 < result.prompt_s <= result.first_token_s
