"""Labelled texts and words, through the model's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from tests.tiny_graphs import write_word_tokenizer

WORDS = ("win", "cash", "hello", "friend", "in", "Paris")
PAD, UNK, CLS, SEP = range(4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_word_tokenizer(tmp_path / "model", WORDS, longest=8)
    return tmp_path / "model"


@pytest.fixture
def sms(tmp_path: Path) -> str:
    (tmp_path / "sms.csv").write_text(
        "text,more,label\nwin cash,hello,spam\nhello friend in Paris,win,ham\nwin,win,1\n"
    )
    return str(tmp_path / "sms.csv")


def test_texts_are_filled_up_within_their_batch_and_labels_numbered(batches, folder, sms):
    data = {"data_files": [sms], "label_names": ["ham", "spam"], "batch_size": 2}
    first, last = batches(folder, "text_classification", **data)
    assert first.inputs["input_ids"].tolist() == [[CLS, 4, 5, SEP, PAD, PAD], [CLS, 6, 7, 8, 9, SEP]]
    assert first.inputs["attention_mask"].sum() == 10
    assert first.labels.tolist() == [1, 0] and last.labels.tolist() == [1]


def test_pairs_are_told_apart_by_their_types(batches, folder, sms):
    data = {"data_files": [sms], "pair_col": "more", "label_col": None, "max_samples": 1}
    [batch] = batches(folder, "text_classification", **data)
    assert batch.inputs["input_ids"].tolist() == [[CLS, 4, 5, SEP, 6, SEP]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    assert batch.labels is None


def test_long_texts_are_cut_and_short_ones_filled_up_as_asked(batches, folder, sms):
    data = {"data_files": [sms], "label_names": ["ham", "spam"]}
    cut = batches(folder, "text_classification", **data, max_seq_len=4)
    assert max(batch.inputs["input_ids"].shape[1] for batch in cut) == 4
    full = batches(folder, "text_classification", **data, pad_to_max_len=True)
    assert {batch.inputs["input_ids"].shape for batch in full} == {(1, 8)}
    with pytest.raises(ColdpressError, match="the model takes 8 tokens"):
        batches(folder, "text_classification", **data, max_seq_len=9)


def test_the_models_own_names_number_the_labels(batches, folder, sms):
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "spam", "1": "ham"}}))
    assert [b.labels[0] for b in batches(folder, "text_classification", data_files=[sms])] == [0, 1, 1]


@pytest.mark.parametrize(
    ("parameters", "words", "hint"),
    [
        ({"label_names": ["ham", "spamm"]}, "row 1: the label 'spam' is not among ham, spamm", "did you mean 'spamm'"),
        ({"label_names": ["spam"]}, "row 2: the label 'ham' is not among spam", None),
        ({}, "row 1: the label 'spam' is no whole number", "give label_names"),
        ({"label_col": "lable"}, "no column 'lable'; found: text, more, label", "did you mean 'label'"),
        ({"text_col": "body"}, "no column 'body'; found: text, more, label", None),
    ],
)
def test_columns_and_labels_that_are_not_known_are_named(batches, folder, sms, parameters, words, hint):
    with pytest.raises(ColdpressError, match=words) as caught:
        batches(folder, "text_classification", data_files=[sms], **parameters)
    assert hint is None or hint in caught.value.hint


def test_a_label_beyond_the_names_is_refused(batches, folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "win", "label": 0}\n{"text": "cash", "label": 2}\n')
    with pytest.raises(ColdpressError, match=r"row 2: the label '2' is not among ham, spam"):
        batches(folder, "text_classification", data_files=[str(tmp_path / "rows.jsonl")], label_names=["ham", "spam"])


def test_a_folder_without_a_tokenizer_says_so_and_another_may_be_named(batches, folder, sms, tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(ColdpressError, match="no tokenizer can be loaded"):
        batches(tmp_path / "bare", "text_classification", data_files=[sms])
    data = {"data_files": [sms], "label_names": ["ham", "spam"], "tokenizer": str(folder)}
    assert len(batches(tmp_path / "bare", "text_classification", **data)) == 3


@pytest.fixture
def cities(tmp_path: Path) -> str:
    rows = [{"tokens": ["hello", "in", "Paris"], "ner_tags": ["O", "O", "PLACE"]}, {"tokens": ["win"], "ner_tags": [0]}]
    (tmp_path / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "cities.jsonl")


def test_words_have_classes_and_all_else_counts_for_nothing(batches, folder, cities):
    data = {"data_files": [cities], "label_names": ["O", "PLACE"], "batch_size": 2}
    [batch] = batches(folder, "token_classification", **data)
    assert batch.inputs["input_ids"].tolist() == [[CLS, 6, 8, 9, SEP], [CLS, 4, SEP, PAD, PAD]]
    assert batch.labels.tolist() == [[-100, 0, 0, 1, -100], [-100, 0, -100, -100, -100]]


def test_only_the_first_token_of_a_word_counts_unless_asked(batches, byte_model, tmp_path):
    file = tmp_path / "words.csv"
    file.write_text("tokens,ner_tags\nab c,1 0\n")
    [batch] = batches(byte_model, "token_classification", data_files=[str(file)])
    assert [label for label in batch.labels[0].tolist() if label != -100] == [1, 0]
    [every] = batches(byte_model, "token_classification", data_files=[str(file)], label_all_tokens=True)
    assert [label for label in every.labels[0].tolist() if label != -100][:2] == [1, 1]


def test_as_many_classes_as_words(batches, folder, tmp_path):
    (tmp_path / "bad.csv").write_text("tokens,ner_tags\nhello Paris,0 1 1\n")
    with pytest.raises(ColdpressError, match="row 1: 2 words, but 3 classes"):
        batches(folder, "token_classification", data_files=[str(tmp_path / "bad.csv")])


def test_prompts_are_filled_up_on_the_left_with_answers_as_labels(batches, byte_model, tmp_path):
    rows = [{"question": "1+1", "answer": "2"}, {"question": "10+1", "answer": 11}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data_files": [str(tmp_path / "sums.jsonl")], "text_template": "{question}="}
    [batch] = batches(byte_model, "prompts", **data, batch_size=2)
    assert batch.inputs["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch.labels == ["2", "11"]
    [first, _] = batches(byte_model, "prompts", **data, chat_template=True)
    assistant = 3
    assert first.inputs["input_ids"][0, -1] == assistant, "the mark of the answer that is to come"
    with pytest.raises(ColdpressError, match="no column 'reply'"):
        batches(byte_model, "prompts", **data, answer_col="reply")


def test_labels_are_whole_numbers_for_torch(batches, folder, sms):
    [batch] = batches(folder, "text_classification", data_files=[sms], label_names=["ham", "spam"], batch_size=3)
    assert batch.labels.dtype == np.int64
