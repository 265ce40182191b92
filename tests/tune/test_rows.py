"""Rows from data: targets, what is cut or left out, and what is held out."""

from __future__ import annotations

import json

import pytest

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import Context, DataSource
from coldpress.tune.rows import HeldOut, check_ids, read_rows, split
from tests.tune.conftest import make_rows


@pytest.fixture
def read(tiny_model, tmp_path):
    def rows(lines, most_tokens=None, **parameters):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        source = DataSource(
            "text_corpus", {"data_files": [str(file)], "strategy": "line_by_line", "max_seq_len": 12, **parameters}
        )
        return read_rows(source, Model(tiny_model, "hf", "key"), Context(tmp_path), most_tokens)

    return rows


def test_a_target_is_the_next_token(read):
    [row] = read([{"text": "abc"}], end_token=True)
    assert row.targets.tolist() == [*row.ids.tolist()[1:], -100] and len(row) == 4
    assert row.ids[-1] == 1  # <|end|>


def test_an_end_token_is_not_written_twice(read):
    rows = read([{"text": "abc<|end|>"}, {"text": "abc"}], end_token=True)
    assert rows[0].ids.tolist() == rows[1].ids.tolist()


def test_only_answers_are_targets(read):
    template = "Q{question}A{answer}<|end|>"
    [row] = read([{"question": "ab", "answer": "cd"}], text_template=template, answers_only=True)
    scored = row.ids[1:][row.targets[:-1] != -100]
    assert scored.tolist() == row.ids[-3:].tolist()  # c d <|end|>


def test_only_what_the_assistant_says_is_a_target(read):
    said = [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "cd"},
        {"role": "user", "content": "e"},
        {"role": "assistant", "content": "f"},
    ]
    [row] = read([{"messages": said}], answers_only=True, max_seq_len=40)
    scored = row.ids[1:][row.targets[:-1] != -100].tolist()
    whole = row.ids.tolist()
    # <|user|> a b <|end|> <|assistant|> c d <|end|> <|user|> e <|end|> <|assistant|> f <|end|>
    assert scored == [*whole[5:8], *whole[12:14]] and len(whole) == 14


def test_answers_must_be_told_apart(read):
    with pytest.raises(ColdpressError, match="row 1: nothing says which part of the text is the answer"):
        read([{"text": "ab"}], answers_only=True)


def test_long_rows_are_cut_and_counted(read):
    rows = read([{"text": "a" * 30}, {"text": "abc"}, {"text": "a" * 12}])
    assert [len(row) for row in rows] == [12, 3, 12] and rows.truncated == 1
    rows = read([{"text": "a" * 10}, {"text": "abc"}], most_tokens=8)
    assert [len(row) for row in rows] == [8, 3] and rows.truncated == 1


def test_rows_without_a_target_are_left_out_and_counted(read):
    rows = read([{"q": "abcdefghijklmn", "a": "x"}, {"q": "a", "a": "x"}], text_template="{q}{a}", answers_only=True)
    assert len(rows) == 1 and rows.unscored == 1
    with pytest.raises(ColdpressError, match="no row of the data has a token to predict"):
        read([{"text": "a"}])


def test_what_is_wrong_with_a_file_is_told_with_its_place(read):
    with pytest.raises(ColdpressError, match=r"rows.jsonl, line 2: not JSON .*\{broken"):
        read([{"text": "ab"}, "{broken"])
    with pytest.raises(
        ColdpressError, match="wants the fields prompt, response; response not among those found: prompt, answer"
    ):
        read([{"prompt": "a", "answer": "b"}], text_template="{prompt} {response}")
    with pytest.raises(ColdpressError, match="has no rows"):
        read([])


def test_a_share_or_a_number_of_rows_is_held_out():
    rows = make_rows(*range(2, 52))
    kept, held_out = split(rows, HeldOut(0.3))
    assert (len(kept), len(held_out)) == (35, 15)
    assert sorted(map(len, [*kept, *held_out])) == list(range(2, 52))
    assert len(split(rows, HeldOut(7))[1]) == 7
    again = split(rows, HeldOut(0.3))[1]
    assert [len(row) for row in again] == [len(row) for row in held_out]
    other = split(rows, HeldOut(0.3, seed=1))[1]
    assert [len(row) for row in other] != [len(row) for row in held_out]


def test_a_tenth_is_held_out_by_itself_of_rows_enough():
    assert HeldOut().count(100) == 10 and HeldOut().count(10_000) == 64 and HeldOut().count(19) == 0
    assert HeldOut(0).count(100) == 0


@pytest.mark.parametrize("size", [-1, 1, 2.5])
def test_sizes_that_make_no_sense_are_refused(size):
    with pytest.raises(ColdpressError, match="eval_dataset_size is"):
        HeldOut(size)


def test_ids_beyond_the_embedding_are_refused():
    rows = make_rows(5)
    rows[0].ids[2] = 600
    with pytest.raises(ColdpressError, match="gives token 600, and the embedding has 512 rows"):
        check_ids(rows, 512)


def test_the_digest_knows_where_rows_end():
    assert make_rows(4, 6).digest != make_rows(6, 4).digest
    assert make_rows(4, 6).digest == make_rows(4, 6).digest
