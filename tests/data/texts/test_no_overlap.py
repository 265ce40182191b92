"""The text that models are calibrated on is not the text that they are judged by."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from coldpress.data.calibration_text import OWN_FOLDER
from coldpress.data.texts import heldout

_WORDS = 8


def sequences(text: str) -> set[str]:
    """All sequences of eight words, without regard to case and punctuation."""
    words = re.findall(r"\w+", text.casefold().replace("_", " "))
    return {" ".join(words[start : start + _WORDS]) for start in range(len(words) - _WORDS + 1)}


def own_text(name: str) -> str:
    text = (OWN_FOLDER / name).read_text(encoding="utf-8")
    if not name.endswith(".jsonl"):
        return text
    return "\n".join(message["content"] for line in text.splitlines() for message in json.loads(line)["messages"])


def evaluation_sequences() -> set[str]:
    folder = resources.files("coldpress.data.texts").joinpath("heldout")
    files = [file for file in folder.iterdir() if file.name.endswith(".txt")]
    return set().union(*(sequences(file.read_text(encoding="utf-8")) for file in files))


@pytest.mark.parametrize("name", ["prose.txt", "dialogue.jsonl", "code.txt"])
def test_calibration_text_shares_no_eight_words_with_the_evaluation_text(name: str):
    ours, theirs = sequences(own_text(name)), evaluation_sequences()
    assert len(ours) > 1000 and len(theirs) > 1000
    assert not ours & theirs


def test_the_evaluation_text_is_the_one_that_metrics_read():
    assert set().union(*map(sequences, heldout.texts())) == evaluation_sequences()


def test_punctuation_and_case_hide_no_overlap():
    assert sequences("One two, three: FOUR five - six (seven) eight!") == {"one two three four five six seven eight"}
