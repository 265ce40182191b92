"""Both examples, run as their pages say: a tiny random model always, SmolLM2 for a few steps where all tests are run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.examples import commands

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {**os.environ, "COLDPRESS_CACHE": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(params=["tiny", pytest.param("smollm2", marks=pytest.mark.full)])
def model(request, tiny_model):
    return str(tiny_model) if request.param == "tiny" else SMOLLM2


@pytest.fixture
def lab(environment, model, tmp_path):
    """A copy of an example's folder in which commands are run as they are typed."""

    codes = (0,) if model == SMOLLM2 else (0, 3)  # a random model may be worse for what is done to it

    def enter(name):
        folder = shutil.copytree(commands.EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("models"))
        (folder / "README.md").unlink()

        def run(command):
            program = {"python": [], "olive": ["-m", "coldpress"], "coldpress": ["-m", "coldpress"]}[command[0]]
            call = [sys.executable, *program, *command[1:]]
            done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode in codes, f"{command}\n{done.stdout}\n{done.stderr}"
            return done.stdout

        return folder, run

    return enter


def shortened(command, model):
    """The command for another model, with three steps."""
    changed = [model if word == SMOLLM2 else word for word in command]
    if "--max_steps" in changed:
        changed[changed.index("--max_steps") + 1] = "3"
    return changed


def test_the_travel_lab(lab, model):
    folder, run = lab("travel")
    *made, ask = [shortened(command, model) for command in commands.of_page("travel", "With SmolLM2")]
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


def test_the_emotion_example(lab, model):
    folder, run = lab("emotion")
    config = folder / "emotion.json"
    text = config.read_text(encoding="utf-8").replace(SMOLLM2, model).replace('"max_steps": 100', '"max_steps": 3')
    config.write_text(text, encoding="utf-8")
    [train] = commands.of_page("emotion", "Train, merge, press")
    measure, again = commands.of_page("emotion", "Measure each step")
    run(train)
    assert (folder / "models/emotion/int4/model.onnx").is_file()
    before, tuned, int4 = run(measure).splitlines()
    for line, stage in ((before, "before"), (tuned, "tuned"), (int4, "int4")):
        assert line.startswith(f"models/emotion/{stage}") and "% right" in line
    assert "exact match" in run(again)
