"""Calibration windows: which text they hold, how it is cut and drawn, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from coldpress.data import calibration_text
from coldpress.data.batches import calibration
from coldpress.data.batches.calibration import Windows
from coldpress.data.calibration_text import CalibrationText
from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import Context, DataSource, schema
from tests.conftest import CONFIG, write_tokenizer


def windows(folder: Path, text: CalibrationText, seed: int = 0) -> Windows:
    """What a pass gets of such data for the model in a folder."""
    source = DataSource("calibration_text", schema.plain(text))
    return calibration.windows(source, Model(folder, "hf", ""), Context(folder, seed=seed))


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer with one token a byte, BOS <s> that it does not add, EOS <|end|>, and a chat template."""
    return model_folder(tmp_path / "model")


def model_folder(folder: Path, **changes: object) -> Path:
    """``changes`` go into tokenizer_config.json; None takes an entry away."""
    folder.mkdir()
    write_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def data(tmp_path: Path, rows: Sequence[object], name: str = "data.jsonl") -> CalibrationText:
    """These rows in a file, in windows of four tokens."""
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CalibrationText(data_files=(str(tmp_path / name),), max_seq_len=4)


def said(folder: Path, found: Windows) -> str:
    """What all windows hold, one after the other."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer.decode(found.ids.ravel().tolist(), skip_special_tokens=False)


def test_texts_are_joined_with_the_end_token_and_cut_into_full_windows(folder: Path, tmp_path: Path):
    found = windows(folder, data(tmp_path, [{"text": "abc"}, {"text": ""}, {"text": "defgh"}, {"text": "ij"}]))
    assert said(folder, found) == "abc<|end|>defgh<|end|>ij"
    assert (found.ids.dtype, found.ids.shape, found.tokens) == (np.int64, (3, 4), 12)
    assert found.sources == "data.jsonl, 4 rows"


def test_a_rest_shorter_than_a_window_is_dropped_and_no_end_token_is_no_separator(tmp_path: Path):
    folder = model_folder(tmp_path / "model", eos_token=None)
    assert (
        said(folder, windows(folder, data(tmp_path, [{"text": "abc"}, {"text": "defgh"}, {"text": "xyz"}])))
        == "abcdefgh"
    )


@pytest.mark.parametrize("bos", ["<s>", {"content": "<s>"}])
def test_every_window_starts_with_bos_where_the_tokenizer_adds_one(tmp_path: Path, bos: object):
    folder = model_folder(tmp_path / "model", bos_token=bos, add_bos_token=True, chat_template="{{ bos_token }}chat")
    found = windows(folder, data(tmp_path, [{"messages": CHAT}, {"messages": CHAT}]))
    assert said(folder, found) == "<s>cha<s>t<|end|>c<s>hat", "the template's own BOS is not a second one"


def test_truncation_and_padding_of_the_tokenizer_do_not_touch_the_text(folder: Path, tmp_path: Path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=10)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert said(folder, windows(folder, data(tmp_path, [{"text": "abcdefgh"}]))) == "abcdefgh"


def test_the_digest_tells_windows_apart(folder: Path, tmp_path: Path):
    text = data(tmp_path, [{"text": "abcdefgh"}])
    found, same = windows(folder, text), windows(folder, text)
    assert found.digest == same.digest and len(found.digest) == len(hashlib.sha256().hexdigest())
    assert windows(folder, replace(text, max_seq_len=8)).digest != found.digest, "the same ids in other windows"
    assert windows(folder, data(tmp_path, [{"text": "abcdefgH"}])).digest != found.digest


# Which windows are drawn


def numbered(tmp_path: Path, count: int) -> CalibrationText:
    return data(tmp_path, [{"text": f"{number:03}"} for number in range(count)])


def numbers(folder: Path, found: Windows) -> list[int]:
    return [int(entry) for entry in said(folder, found).split("<|end|>") if entry]


def test_windows_are_drawn_by_the_seed_from_the_first_eight_times_as_many(folder: Path, tmp_path: Path):
    text = replace(numbered(tmp_path, 900), max_samples=40)
    found = windows(folder, text, seed=3)
    drawn = numbers(folder, found)
    assert len(drawn) == len(set(drawn)) == 40 and drawn == sorted(drawn)
    assert max(drawn) < 320 and max(drawn) > 200
    assert found.sources == "data.jsonl, first 321 rows"
    assert windows(folder, text, seed=3).digest == found.digest != windows(folder, text, seed=4).digest


def test_what_lies_behind_the_pool_is_not_read(folder: Path, tmp_path: Path):
    text = replace(numbered(tmp_path, 100), max_samples=2)
    with Path(text.data_files[0]).open("a") as stream:
        stream.write("no JSON")
    assert windows(folder, text).ids.shape == (2, 4)


def test_all_windows_are_taken_when_there_are_fewer(folder: Path, tmp_path: Path):
    text = numbered(tmp_path, 21)
    assert numbers(folder, windows(folder, text, seed=1)) == list(range(20)), "no end token behind the last text"
    assert windows(folder, text, seed=1).digest == windows(folder, text, seed=2).digest


def test_files_are_read_in_turn(folder: Path, tmp_path: Path):
    one = data(tmp_path, [{"text": "aaa"}] * 100, "one.jsonl")
    two = data(tmp_path, [{"text": "bbb"}] * 100, "two.jsonl")
    found = windows(folder, replace(one, data_files=one.data_files + two.data_files, max_samples=4))
    assert said(folder, found).count("aaa") + said(folder, found).count("bbb") == 4
    assert found.sources == "one.jsonl, two.jsonl, first 33 rows"


def test_more_files_than_are_open_at_a_time_are_all_read(folder: Path, tmp_path: Path):
    for number in range(70):
        data(tmp_path, [{"text": f"{number:03}"}] * (1 + number % 3), f"{number:03}.jsonl")
    found = windows(folder, CalibrationText(data_files=(f"{tmp_path}/*.jsonl",), max_seq_len=4, max_samples=500))
    assert set(numbers(folder, found)) == set(range(70))
    assert found.sources == "000.jsonl, 001.jsonl, 002.jsonl and 67 more, 139 rows"


# From rows to text


def one_text(folder: Path, text: CalibrationText, length: int) -> str:
    return said(folder, windows(folder, replace(text, max_seq_len=length)))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("### Q: {prompt} \\n### A: {Best Answer}", "### Q: tin? \n### A: metal"),
        ("### Q: {prompt}\n### A: {Best Answer}", "### Q: tin?\n### A: metal"),
        ("{n:03} {a.b}{note} {{x}}", "007 dot {x}"),
        ("<|user|>{prompt}<|end|>", "<|user|>tin?<|end|>"),
    ],
)
def test_a_template_is_filled_with_the_fields_of_the_row(folder: Path, tmp_path: Path, template: str, expected: str):
    row = {"prompt": "tin?", "Best Answer": "metal", "n": 7, "a.b": "dot", "note": None}
    text = replace(data(tmp_path, [row]), text_template=template)
    length = len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(expected).ids)
    assert one_text(folder, text, length) == expected


def test_fields_that_are_not_there_are_listed_with_those_that_are(folder: Path, tmp_path: Path):
    text = replace(data(tmp_path, [{"prompt": "abcd", "answer": "ef"}]), text_template="{prompt} {response}")
    with pytest.raises(
        ColdpressError, match=r"data.jsonl, row 1: .*wants the fields prompt, response.*: prompt, answer"
    ):
        windows(folder, text)
    with pytest.raises(ColdpressError, match="no field 'text'; found: words"):
        windows(folder, data(tmp_path, [{"text": "abcd"}, {"words": "abcd"}]))


@pytest.mark.parametrize("template", ["", "no field", "{}", "{prompt"])
def test_a_template_without_fields_is_refused(folder: Path, tmp_path: Path, template: str):
    with pytest.raises(ColdpressError, match="text_template '"):
        windows(folder, replace(data(tmp_path, [{"prompt": "abcd"}]), text_template=template))


def test_a_template_reaches_no_attributes(folder: Path, tmp_path: Path):
    text = replace(data(tmp_path, [{"prompt": "abcd"}]), text_template="{prompt.__class__}")
    with pytest.raises(ColdpressError, match=r"wants the fields prompt.__class__"):
        windows(folder, text)


def test_the_column_with_the_text_is_found(folder: Path, tmp_path: Path):
    assert one_text(folder, data(tmp_path, [{"id": "x", "text": "abcd"}]), 4) == "abcd"
    assert one_text(folder, data(tmp_path, [{"id": 1, "review": "abcd", "scores": [1]}]), 4) == "abcd"
    with pytest.raises(ColdpressError, match=r"which field is the text.*found: prompt, response, n") as caught:
        windows(folder, data(tmp_path, [{"prompt": "a", "response": "b", "n": 1}]))
    assert "{prompt} {response}" in (caught.value.hint or "")
    with pytest.raises(ColdpressError, match="row 2: field 'text' holds no text but int: 7"):
        windows(folder, data(tmp_path, [{"text": "a"}, {"text": 7}]))


def test_the_lines_of_a_text_file_stay_together(folder: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("ab\n\ncd\nef")
    found = windows(folder, CalibrationText(data_files=(f"{tmp_path}/a.txt",), max_seq_len=9))
    assert (said(folder, found), found.sources) == ("ab\n\ncd\nef", "a.txt, 4 lines")


# Conversations

RENDERED = "<|user|>Hi<|end|><|assistant|>Hello<|end|>"
PLAIN = "User: Hi\nAssistant: Hello"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"id": "x", "text": "other", "conversations": CHAT},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT[1]]},
    ],
)
def test_conversations_are_written_by_the_chat_template(folder: Path, tmp_path: Path, row: dict):
    text = data(tmp_path, [row])
    assert one_text(folder, text, 11) == RENDERED
    assert one_text(folder, replace(text, chat_template=True), 11) == RENDERED
    assert one_text(folder, replace(text, chat_template=False), len(PLAIN)) == PLAIN


def test_an_end_token_that_the_template_writes_is_not_doubled(folder: Path, tmp_path: Path):
    assert one_text(folder, data(tmp_path, [{"messages": CHAT}] * 2), 22) == RENDERED * 2


def test_without_a_chat_template_conversations_are_plain(tmp_path: Path):
    folder = model_folder(tmp_path / "model", chat_template=None)
    text = data(tmp_path, [{"messages": CHAT}])
    assert one_text(folder, text, len(PLAIN)) == PLAIN
    with pytest.raises(ColdpressError, match="tokenizer has no chat template"):
        windows(folder, replace(text, chat_template=True))


@pytest.mark.parametrize("template", [None, "{word}"])
def test_a_text_becomes_a_user_message_when_asked(folder: Path, tmp_path: Path, template: str | None):
    text = replace(data(tmp_path, [{"word": "abc"}]), text_template=template)
    assert one_text(folder, replace(text, chat_template=True), 5) == "<|user|>abc<|end|>"
    assert one_text(folder, text, 3) == "abc"


def test_a_template_in_a_file_and_one_among_several_are_found(tmp_path: Path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes!"}]
    several = model_folder(tmp_path / "several", chat_template=named)
    assert one_text(several, data(tmp_path, [{"messages": CHAT}]), 4) == "yes!"
    (several / "chat_template.jinja").write_text("file")
    assert one_text(several, data(tmp_path, [{"messages": CHAT}]), 4) == "file"


def test_a_template_that_writes_the_date_writes_the_same_on_any_day(tmp_path: Path):
    dated = "\n  {% if true %}\n{{ strftime_now('%d %B %Y') }} {{ strftime_now('%Y-%m-%d') }}{% endif %}"
    folder = model_folder(tmp_path / "model", chat_template=dated)
    assert one_text(folder, data(tmp_path, [{"messages": CHAT}]), 27) == "\n01 January 2025 2025-01-01"


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ message['content'] }}|{% endfor %}"
)


def test_a_system_message_that_the_template_refuses_begins_the_first_user_message(tmp_path: Path):
    folder = model_folder(tmp_path / "model", chat_template=NO_SYSTEM)
    system = {"role": "system", "content": "Be kind."}
    assert one_text(folder, data(tmp_path, [{"messages": [system, *CHAT]}]), 19) == "Be kind.\n\nHi|Hello|"
    with pytest.raises(ColdpressError, match=r"row 1: .*refuses the conversation: System role not supported"):
        windows(folder, data(tmp_path, [{"messages": [system]}]))


@pytest.mark.parametrize("value", [[], [{"speaker": "x"}], ["Hi"]])
def test_what_is_no_conversation_is_refused(folder: Path, tmp_path: Path, value: object):
    with pytest.raises(ColdpressError, match=r"data.jsonl, row 1: (no list of messages|a message without role)"):
        windows(folder, data(tmp_path, [{"messages": value}]))


# What is refused


def test_too_little_text_is_said_in_tokens(folder: Path, tmp_path: Path):
    with pytest.raises(ColdpressError, match=r"one window of 100 tokens: data.jsonl 12 tokens") as caught:
        windows(folder, replace(data(tmp_path, [{"text": "abcdefghijkl"}]), max_seq_len=100))
    assert "max_seq_len 12" in (caught.value.hint or "")
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(ColdpressError, match=r"blank.txt 0 tokens"):
        windows(folder, CalibrationText(data_files=(f"{tmp_path}/blank.txt",)))


@pytest.mark.parametrize(
    "config", [{"max_position_embeddings": 256}, {"text_config": {"max_position_embeddings": 256}}]
)
def test_windows_longer_than_the_model_are_refused(folder: Path, config: dict):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ColdpressError, match="max_seq_len is 512; the model has 256 positions") as caught:
        windows(folder, CalibrationText())
    assert "max_seq_len of 256" in (caught.value.hint or "")


def test_options_that_mean_nothing_are_refused(folder: Path):
    with pytest.raises(ColdpressError, match="text_template is for data of your own"):
        windows(folder, CalibrationText(text_template="{text}"))
    with pytest.raises(ColdpressError, match="max_samples is 0"):
        windows(folder, CalibrationText(max_samples=0))
    with pytest.raises(ColdpressError, match="max_seq_len is 1; at least 2 are needed"):
        windows(folder, CalibrationText(max_seq_len=1))


# The text that coldpress ships


@pytest.fixture
def own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stand-in for the shipped text: 20 windows of four tokens of prose, 40 of dialogue, 5 of code."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "prose.txt").write_text("---\n".join(["ppp\n"] * 21))
    (own / "code.txt").write_text("---\n".join(["c-c\n"] * 6))
    chat = {"messages": [{"role": "user", "content": "dd"}]}
    (own / "dialogue.jsonl").write_text((json.dumps(chat) + "\n") * 40)
    monkeypatch.setattr(calibration_text, "OWN_FOLDER", own)


OWN = CalibrationText(max_seq_len=4)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (3, (1, 1, 1)), (7, (3, 2, 2)), (30, (13, 12, 5)), (1000, (20, 40, 5))],
)
@pytest.mark.usefixtures("own_text")
def test_each_kind_of_the_own_text_is_there(folder: Path, count: int, expected: tuple[int, ...]):
    found = windows(folder, replace(OWN, max_samples=count))
    rows = [said(folder, Windows(row[None], "")) for row in found.ids]
    assert tuple(sum(mark in row for row in rows) for mark in ("ppp", "dd", "c-c")) == expected
    assert found.sources == "coldpress's own text: prose, dialogue, code"


@pytest.mark.usefixtures("own_text")
def test_only_the_kinds_with_a_window_are_named(folder: Path):
    assert windows(folder, replace(OWN, max_seq_len=60)).sources == "coldpress's own text: prose, dialogue"
    with pytest.raises(ColdpressError, match="prose 83 tokens, dialogue 160 tokens, code 23 tokens") as caught:
        windows(folder, replace(OWN, max_seq_len=200))
    assert "max_seq_len 160" in (caught.value.hint or "")


@pytest.mark.usefixtures("own_text")
def test_dialogue_of_the_own_text_is_written_by_the_chat_template(folder: Path):
    assert "<|user|>dd<|end|>" in said(folder, windows(folder, OWN))
    wrapped = said(folder, windows(folder, replace(OWN, chat_template=True)))
    assert "<|user|>ppp<|end|>" in wrapped
    assert "User: dd" in said(folder, windows(folder, replace(OWN, chat_template=False)))


def test_the_shipped_text_gives_windows(folder: Path):
    found = windows(folder, CalibrationText())
    assert found.ids.shape == (128, 512)
    assert found.sources == "coldpress's own text: prose, dialogue, code"
