"""The examples' data: as much as is promised, nothing twice, nothing measured on that was trained on, all of it
readable."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations, product

import pytest

from coldpress.data.texts.documents import Documents
from coldpress.data.texts.rows import rows, tables
from tests.examples.commands import EXAMPLES, template

TRAVEL = EXAMPLES / "travel/data/data_sample_travel.jsonl"
TRAVEL_HELD_OUT = EXAMPLES / "travel/data/data_eval_travel.jsonl"
EMOTION = EXAMPLES / "emotion/data/dataset-classification.json"
EMOTION_HELD_OUT = EXAMPLES / "emotion/data/dataset-classification-eval.json"
TONES = {"Sad", "Joy", "Fear", "Surprise"}
NAMED = re.compile(
    r"\b(sad|sorrow|grie|lonel|miss|cry|cried|wept|tear|happ|joy|glad|delight|laugh|smil|lov|fear|afraid|scar|terrif|"
    r"fright|panic|dread|surpris|astonish|amaz|stun|unbeliev|wow|suddenly|horr|nervous|anxious|worr|proud|thrill)",
    re.IGNORECASE,
)


def read(file):
    return list(rows("json", [file]))


def words(row):
    """The words of a row that are not those of the style."""
    own = " ".join(row.values()).replace("Tip:", "").replace("Happy travels!", "")
    return frozenset(re.findall(r"\w+", own.lower()))


def likeness(one, other):
    return len(one & other) / len(one | other)


@pytest.mark.parametrize(
    ("file", "fields", "count"),
    [
        (TRAVEL, ["prompt", "response"], 339),
        (TRAVEL_HELD_OUT, ["prompt", "response"], 40),
        (EMOTION, ["phrase", "tone"], 480),
        (EMOTION_HELD_OUT, ["phrase", "tone"], 80),
    ],
    ids=lambda value: getattr(value, "stem", ""),
)
def test_rows_are_whole_and_as_many_as_their_page_says(file, fields, count):
    found = read(file)
    assert len(found) == count
    for row in found:
        assert list(row) == fields
        assert all(text and text == text.strip() and "\n" not in text for text in row.values()), row
    assert str(count) in (file.parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("train", "held_out"), [(TRAVEL, TRAVEL_HELD_OUT), (EMOTION, EMOTION_HELD_OUT)])
def test_no_row_is_like_another(train, held_out):
    """No two rows share more than half of their words, and no row that is measured on is like one that is trained
    on."""
    trained, measured = [list(map(words, read(file))) for file in (train, held_out)]
    pairs = [*combinations(trained, 2), *combinations(measured, 2), *product(trained, measured)]
    alike = [(one, other) for one, other in pairs if likeness(one, other) > 0.5]
    assert not alike


@pytest.mark.parametrize(
    ("train", "held_out", "field"), [(TRAVEL, TRAVEL_HELD_OUT, "prompt"), (EMOTION, EMOTION_HELD_OUT, "phrase")]
)
def test_no_question_is_asked_twice(train, held_out, field):
    asked = [row[field].lower() for row in [*read(train), *read(held_out)]]
    assert [text for text, count in Counter(asked).items() if count > 1] == []


@pytest.mark.parametrize("file", [TRAVEL, TRAVEL_HELD_OUT])
def test_answers_are_short_and_in_one_style(file):
    for row in read(file):
        answer, tip = row["response"].split(" Tip: ")
        assert answer and tip.endswith(" Happy travels!") and len(row["response"].split()) <= 45, row


@pytest.mark.parametrize("file", [EMOTION, EMOTION_HELD_OUT])
def test_tones_are_balanced_and_mostly_not_named(file):
    found = read(file)
    counts = Counter(row["tone"] for row in found)
    assert set(counts) == TONES and len(set(counts.values())) == 1
    for tone in TONES:
        unnamed = [row for row in found if row["tone"] == tone and not NAMED.search(row["phrase"])]
        assert len(unnamed) > counts[tone] / 2, tone


@pytest.mark.parametrize("file", [TRAVEL, TRAVEL_HELD_OUT])
@pytest.mark.parametrize("part", ["With SmolLM2", "With Phi-3.5-mini"])
def test_every_row_fits_the_template_that_the_page_trains_with(file, part):
    [table] = tables("json", [file])
    for row, text in Documents(template("travel", part)).with_rows(table):
        assert row["prompt"] in text and row["response"] in text and "\\n" not in text


@pytest.mark.parametrize("file", [EMOTION, EMOTION_HELD_OUT])
def test_every_phrase_fits_the_template_of_the_configuration(file):
    config = json.loads((EXAMPLES / "emotion/emotion.json").read_text(encoding="utf-8"))
    pattern = config["data_configs"][0]["pre_process_data_config"]["params"]["text_template"]
    [table] = tables("json", [file])
    for row, text in Documents(pattern).with_rows(table):
        assert text == f"### Text: {row['phrase']}\n### The tone is:\n{row['tone']}"
