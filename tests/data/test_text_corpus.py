"""Windows of tokens from files: how texts are joined, cut, padded and drawn, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import DataSource

SPECIAL = 5  # <s> <|end|> <|user|> <|assistant|> <|system|>
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def lines(tmp_path: Path, *texts: str) -> list[str]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text, "other": text.upper()}) + "\n" for text in texts))
    return [str(file)]


def spelled(ids: np.ndarray) -> str:
    """Ids of the byte tokenizer as letters; the end token is a dot, padding too."""
    return "".join("." if token < SPECIAL else ALPHABET[token - SPECIAL] for token in ids)


def test_texts_are_joined_with_the_end_token_and_cut_into_windows(batches, byte_model, tmp_path):
    found = batches(byte_model, "text_corpus", data_files=lines(tmp_path, "abcd", "efgh", "i"), max_seq_len=4)
    assert [spelled(batch.inputs["input_ids"][0]) for batch in found] == ["abcd", ".efg", "h.i"]
    assert all((batch.labels == batch.inputs["input_ids"]).all() for batch in found)
    assert all((batch.inputs["attention_mask"] == 1).all() for batch in found)


def test_a_joiner_takes_the_place_of_the_end_token(batches, byte_model, tmp_path):
    data = {"data_files": lines(tmp_path, "ab", "cd"), "max_seq_len": 5, "joiner": "-"}
    assert [spelled(batch.inputs["input_ids"][0]) for batch in batches(byte_model, "text_corpus", **data)] == ["ab-cd"]


def test_each_line_is_a_window_cut_and_filled_up(batches, byte_model, tmp_path):
    data = {"data_files": lines(tmp_path, "abcdef", "gh", "", "i"), "strategy": "line_by_line", "max_seq_len": 4}
    [batch] = batches(byte_model, "text_corpus", **data, batch_size=4)
    assert [spelled(ids) for ids in batch.inputs["input_ids"]] == ["abcd", "gh..", "i..."]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert (batch.labels[batch.inputs["attention_mask"] == 0] == -100).all()
    [left] = batches(byte_model, "text_corpus", **data, batch_size=4, padding_side="left", max_samples=2)
    assert [spelled(ids) for ids in left.inputs["input_ids"]] == ["abcd", "..gh"]


def test_lines_of_a_text_file_are_windows_of_their_own_only_when_asked(batches, byte_model, tmp_path):
    file = tmp_path / "prose.txt"
    file.write_text("ab\ncd\n")
    [joined] = batches(byte_model, "text_corpus", data_files=[str(file)], max_seq_len=8)
    assert joined.inputs["input_ids"].shape == (1, 5)
    by_line = batches(byte_model, "text_corpus", data_files=[str(file)], max_seq_len=8, strategy="line_by_line")
    assert [spelled(batch.inputs["input_ids"][0]) for batch in by_line] == ["ab", "cd"]


def test_padding_to_the_full_length_and_dropping_what_is_short(batches, byte_model, tmp_path):
    data = {"data_files": lines(tmp_path, "abcdef", "gh"), "strategy": "line_by_line", "max_seq_len": 4}
    [_, short] = batches(byte_model, "text_corpus", **data, pad_to_max_len=True)
    assert short.inputs["input_ids"].shape == (1, 4)
    [only] = batches(byte_model, "text_corpus", **data, drop_short_sequences=True)
    assert spelled(only.inputs["input_ids"][0]) == "abcd"


def test_sliding_windows_overlap_and_score_each_token_once(batches, byte_model, tmp_path):
    data = {"data_files": lines(tmp_path, "abcdefgh"), "strategy": "sliding_window", "max_seq_len": 4, "stride": 2}
    found = batches(byte_model, "text_corpus", **data)
    assert [spelled(batch.inputs["input_ids"][0]) for batch in found] == ["abcd", "cdef", "efgh"]
    assert [(batch.labels[0] != -100).sum() for batch in found] == [4, 2, 2]
    every = np.concatenate([batch.labels[0][batch.labels[0] != -100] for batch in found])
    assert spelled(every) == "abcdefgh"


@pytest.mark.parametrize("length", range(1, 14))
def test_whatever_the_length_sliding_windows_score_every_token_once(batches, byte_model, tmp_path, length):
    text = "abcdefghijklm"[:length]
    data = {"data_files": lines(tmp_path, text), "strategy": "sliding_window", "max_seq_len": 5, "stride": 3}
    found = batches(byte_model, "text_corpus", **data, pad_to_max_len=True)
    assert spelled(np.concatenate([batch.labels[0][batch.labels[0] != -100] for batch in found])) == text


@pytest.mark.parametrize("strategy", ["join_random", "line_by_line_random"])
def test_random_windows_are_drawn_alike_for_one_seed(batches, byte_model, tmp_path, strategy):
    texts = [chr(97 + index) * 4 for index in range(20)]
    data = {"data_files": lines(tmp_path, *texts), "strategy": strategy, "max_seq_len": 4, "max_samples": 5}

    def drawn(seed: int) -> list[str]:
        found = batches(byte_model, "text_corpus", **data, seed=seed)
        return [spelled(batch.inputs["input_ids"][0]) for batch in found]

    assert drawn(1) == drawn(1) and len(drawn(1)) == 5
    assert drawn(1) != drawn(2)


def test_columns_templates_and_chats_say_what_is_text(batches, byte_model, tmp_path):
    data = {"data_files": lines(tmp_path, "ab"), "max_seq_len": 64, "strategy": "line_by_line"}

    def text(**options: object) -> str:
        return spelled(batches(byte_model, "text_corpus", **data, **options)[0].inputs["input_ids"][0])

    assert text(text_cols=["other", "text"]) == "ABĠab"
    assert text(text_template="{text}:{other}") == "ab:AB"
    assert text(text_cols=["text"], chat_template=True) == ".ab."
    assert text(text_cols=["text"], chat_template="<{{ messages[0]['content'] }}>") == "<ab>"


def test_shuffled_samples_are_the_same_ones_in_another_order(batches, byte_model, tmp_path):
    data = {"data_files": lines(tmp_path, *"abcdefghij"), "max_seq_len": 2, "strategy": "line_by_line"}
    plain, mixed = (
        [spelled(b.inputs["input_ids"][0]) for b in batches(byte_model, "text_corpus", **data, shuffle=on, seed=3)]
        for on in (False, True)
    )
    assert plain != mixed and sorted(plain) == sorted(mixed)


def test_the_last_batch_may_be_left_out(batches, byte_model, tmp_path):
    data = {"data_files": lines(tmp_path, *"abcde"), "max_seq_len": 2, "strategy": "line_by_line", "batch_size": 2}
    assert [batch.size for batch in batches(byte_model, "text_corpus", **data)] == [2, 2, 1]
    assert [batch.size for batch in batches(byte_model, "text_corpus", **data, drop_last=True)] == [2, 2]
    with pytest.raises(ColdpressError, match="gave no batch"):
        batches(byte_model, "text_corpus", **{**data, "batch_size": 9}, drop_last=True)


def test_a_long_file_is_never_whole_in_memory(batches, byte_model, context, tmp_path):
    file = tmp_path / "long.txt"
    with file.open("w") as stream:
        for _ in range(40_000):
            stream.write("the quick brown fox jumps over the lazy dog, again and again and again\n")
    source = DataSource("text_corpus", {"data_files": [str(file)], "max_seq_len": 256, "shuffle": True})
    next(iter(source.batches(Model(byte_model, "hf", ""), context)))  # imports
    tracemalloc.start()
    for count, _batch in enumerate(source.batches(Model(byte_model, "hf", ""), context)):
        if count == 2000:
            break
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.stat().st_size > 2.8e6
    assert peak < 20e6, peak  # 4096 windows of 2 KB are held to be shuffled; all windows' ids were 23 MB


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"text_cols": ["text"], "text_template": "{text}"}, "text_cols has no effect"),
        ({"strategy": "join_random"}, "needs max_samples"),
        ({"stride": 4}, "stride goes with"),
        ({"strategy": "sliding_window"}, "stride goes with"),
        ({"strategy": "sliding_window", "stride": 9, "max_seq_len": 8}, "stride is 9"),
        ({"strategy": "line_by_line", "joiner": "x"}, "joiner has no effect"),
        ({"max_seq_len": 1}, "at least 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_samples": 0}, "max_samples is 0"),
        ({"strategy": "lines"}, "'lines' is not a choice"),
        ({"text_cols": ["txt"]}, "no column 'txt'; found: text, other"),
        ({"text_template": "{words}"}, "not among those found: text, other"),
    ],
)
def test_what_cannot_be_is_refused(batches, byte_model, tmp_path, parameters, words):
    with pytest.raises(ColdpressError, match=words):
        batches(byte_model, "text_corpus", data_files=lines(tmp_path, "ab"), **parameters)


def test_data_that_is_not_there_is_refused(batches, byte_model, tmp_path):
    with pytest.raises(ColdpressError, match="neither data_name nor data_files"):
        batches(byte_model, "text_corpus")
    with pytest.raises(ColdpressError, match="does not exist"):
        batches(byte_model, "text_corpus", data_files=["missing.jsonl"])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ColdpressError, match="has no rows"):
        batches(byte_model, "text_corpus", data_files=[str(tmp_path / "empty.jsonl")])


@pytest.mark.parametrize("kind", ["text_corpus", "prompts"])
@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ bos_token }}{{ messages[0].content }}"])
def test_a_chat_begins_with_bos_only_where_its_template_writes_it(batches, byte_model, tmp_path, kind, template):
    """As in transformers, whose tokenizer here begins every other text with BOS."""
    from transformers import AutoTokenizer

    content = json.loads((byte_model / "tokenizer.json").read_text())
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": pieces, "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }  # fmt: skip
    (byte_model / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((byte_model / "tokenizer_config.json").read_text())
    (byte_model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    tokenizer = AutoTokenizer.from_pretrained(str(byte_model))
    said = tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "abc", "answer": "d"}) + "\n")
    options = {"strategy": "line_by_line"} if kind == "text_corpus" else {}
    options |= {"data_files": [str(tmp_path / "rows.jsonl")], "text_cols": ["text"]}
    for chat, expected in ((True, tokenizer(said, add_special_tokens=False)), (False, tokenizer("abc"))):
        [batch] = batches(byte_model, kind, chat_template=chat, **options)
        assert batch.inputs["input_ids"].tolist() == [expected["input_ids"]]
