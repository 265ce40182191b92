"""Predictions against labels: classes, classes of tokens, what is heard, what is answered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coldpress.errors import ColdpressError
from coldpress.graphs.session import Session
from coldpress.metrics.accuracy import Accuracy
from coldpress.models.model import Model
from coldpress.networks.reference import Reference
from coldpress.parts import Context, DataSource, schema
from coldpress.target import Target
from tests.sounds import write_sound
from tests.tiny_graphs import OPSET, write_linear, write_text_classifier, write_word_tokenizer

WORDS = ("win", "cash", "hello", "friend")


@pytest.fixture
def here(tmp_path: Path) -> Context:
    return Context(tmp_path / "scratch", Target(threads=1))


@pytest.fixture
def spam_model(tmp_path: Path) -> Model:
    """``win`` and ``cash`` speak for class 1, everything else for class 0."""
    folder = tmp_path / "spam"
    vocabulary = write_word_tokenizer(folder, WORDS)
    write_text_classifier(folder, np.array([[0, 4] if word in ("win", "cash") else [1, 0] for word in vocabulary]))
    return Model(folder, "onnx", "spam")


@pytest.fixture
def sms(tmp_path: Path) -> DataSource:
    """Six messages; the model takes the fourth, which is ham, for spam, and the fifth for ham."""
    rows = ["win cash,spam", "hello,ham", "friend hello,ham", "win,ham", "hello friend,spam", "cash cash,spam"]
    (tmp_path / "sms.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return DataSource(
        "text_classification",
        {"data_files": [str(tmp_path / "sms.csv")], "label_names": ["ham", "spam"], "batch_size": 4},
    )


def test_numbers_of_classes_are_what_they_are_defined_to_be(spam_model, sms, here):
    numbers = ("accuracy", "f1", "precision", "recall")
    found = Accuracy(data=sms, numbers=numbers, average="binary").measure(spam_model, here)
    assert found["samples"] == 6
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    macro = Accuracy(data=sms, numbers=("f1",)).measure(spam_model, here)
    assert macro["f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_auroc_equals_the_share_of_pairs_in_order(spam_model, sms, here):
    found = Accuracy(data=sms, numbers=("auroc",), average="binary").measure(spam_model, here)
    spam, ham = [], []
    session = Session(spam_model.path, here.target)
    for batch in sms.batches(spam_model, here):
        logits = session.run(batch.inputs)["logits"]
        for (ham_logit, spam_logit), label in zip(logits, batch.labels, strict=True):
            (spam if label else ham).append(spam_logit - ham_logit)
    pairs = [(one > other) + 0.5 * (one == other) for one in spam for other in ham]
    assert found["auroc"] == pytest.approx(np.mean(pairs))


def test_a_few_batches_are_enough_for_a_first_look(spam_model, sms, here):
    assert Accuracy(data=sms, max_batches=1).measure(spam_model, here)["samples"] == 4


def test_tokens_that_are_no_words_do_not_count(tmp_path, here):
    folder = tmp_path / "tagger"
    vocabulary = write_word_tokenizer(folder, WORDS)
    write_text_classifier(
        folder, np.array([[0, 1] if word == "friend" else [1, 0] for word in vocabulary]), each_token=True
    )
    rows = [
        {"tokens": ["hello", "friend"], "ner_tags": [0, 1]},
        {"tokens": ["win", "cash", "hello"], "ner_tags": [0, 1, 0]},
    ]
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSource("token_classification", {"data_files": [str(tmp_path / "tags.jsonl")], "batch_size": 2})
    metric = Accuracy(data=data, task="token_classification", numbers=("accuracy", "exact_match"))
    assert metric.measure(Model(folder, "onnx", "tags"), here) == {
        "accuracy": pytest.approx(4 / 5),
        "exact_match": pytest.approx(1 / 2),
        "samples": 2,
    }


def test_a_function_may_read_the_outputs(spam_model, sms, here, tmp_path):
    (tmp_path / "reading.py").write_text(
        "def turned_round(outputs, inputs):\n"
        "    assert set(inputs) >= {'input_ids', 'attention_mask'}\n"
        "    return -outputs['logits']\n"
    )
    metric = Accuracy(data=sms, script=str(tmp_path / "reading.py"), function="turned_round")
    assert metric.measure(spam_model, here)["accuracy"] == pytest.approx(2 / 6)


def test_a_hugging_face_encoder_is_measured_alike(sms, here, tmp_path):
    """The same data on a BERT in PyTorch: accuracy is what its own logits say."""
    import torch
    import transformers

    folder = tmp_path / "bert"
    vocabulary = write_word_tokenizer(folder, WORDS)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(config).eval()
    bert.save_pretrained(folder)
    model = Model(folder, "hf", "bert")
    right = 0
    for batch in sms.batches(model, here):
        with torch.inference_mode():
            logits = bert(**{name: torch.from_numpy(array) for name, array in batch.inputs.items()}).logits
        right += int((logits.argmax(-1).numpy() == batch.labels).sum())
    assert Accuracy(data=sms).measure(model, here)["accuracy"] == pytest.approx(right / 6)


def answers(tmp_path: Path, *texts: str) -> DataSource:
    rows = [{"text": f"question {index}", "answer": text} for index, text in enumerate(texts)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource("prompts", {"data_files": [str(tmp_path / "answers.jsonl")], "text_cols": ["text"]})


def test_answers_of_the_onnx_model_and_its_source_are_compared_with_the_right_ones(
    pressed, tiny_source, context, tmp_path
):
    from coldpress.data.texts.tokenization import pretrained_tokenizer
    from coldpress.data.texts.windows import Tokens

    tokenizer, tokens = pretrained_tokenizer(tiny_source.path), Tokens(tiny_source.path)
    said = tokenizer.decode(Reference(tiny_source.path).greedy(tokens.of("question 0"), 6), skip_special_tokens=True)
    data = answers(tmp_path, f" {said.upper()} ", "something else")
    metric = Accuracy(data=data, task="generation", max_new_tokens=6, ignore_case=True, numbers=("exact_match", "wer"))
    for model in (pressed("fp32"), tiny_source):
        found = metric.measure(model, context)
        assert found["exact_match"] == 0.5 and found["wer"] > 0


@pytest.fixture
def listener(tmp_path: Path) -> Model:
    """A model for which four samples of sound are the logits of one frame: blank, space, a and b."""
    folder = tmp_path / "listener"
    folder.mkdir()
    given = helper.make_tensor_value_info("input_values", TensorProto.FLOAT, ["N", "samples"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "frames", 4])
    shape = numpy_helper.from_array(np.array([0, -1, 4]), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["input_values", "shape"], ["logits"])], "ctc", [given], [logits], [shape]
    )
    onnx.save(helper.make_model(graph, opset_imports=OPSET, ir_version=9), str(folder / "model.onnx"))
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "a": 2, "b": 3}))
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "word_delimiter_token": "|"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Model(folder, "onnx", "listener")


def test_what_is_heard_is_compared_word_by_word(listener, here, tmp_path):
    frames = np.eye(4)[[2, 2, 0, 2, 1, 3, 0, 0]] * 0.9  # "aa b"
    write_sound(tmp_path / "one.wav", frames.ravel())
    write_sound(tmp_path / "two.wav", frames.ravel())
    (tmp_path / "said.csv").write_text("audio,text\none.wav,aa b\ntwo.wav,ab b\n")
    sounds = {"folder": str(tmp_path), "data_files": [str(tmp_path / "said.csv")], "text_col": "text"}
    metric = Accuracy(data=DataSource("audio", sounds), task="speech", numbers=("wer", "exact_match"))
    assert metric.measure(listener, here) == {"wer": pytest.approx(1 / 4), "exact_match": 0.5, "samples": 2}


@pytest.mark.parametrize(
    ("parameters", "words", "hint"),
    [
        ({"numbers": ["acuracy"]}, "there is no number 'acuracy'", "did you mean 'accuracy'"),
        ({"numbers": ["wer"]}, "the task classification gives no 'wer'", "it gives accuracy, f1"),
        ({"numbers": ["perplexity"]}, "a metric of its own", "use the metric 'perplexity'"),
        ({"task": "clasification"}, "'clasification' is not a choice", "did you mean 'classification'"),
        ({"average": "mean"}, "'mean' is not a choice", None),
        ({"script": "a.py"}, "script and function go together", None),
    ],
)
def test_requests_that_cannot_be_are_refused_before_any_work(parameters, words, hint):
    with pytest.raises(ColdpressError, match=words) as caught:
        schema.build(Accuracy, parameters, "metrics.accuracy")
    assert hint is None or hint in caught.value.hint


def test_labels_and_outputs_that_do_not_belong_together_are_refused(spam_model, sms, here, tmp_path):
    with pytest.raises(ColdpressError, match="needs labelled data"):
        Accuracy().measure(spam_model, here)
    unlabelled = DataSource(sms.type, {**sms.parameters, "label_col": None})
    with pytest.raises(ColdpressError, match="has no labels here"):
        Accuracy(data=unlabelled).measure(spam_model, here)
    with pytest.raises(ColdpressError, match="no output 'logit'") as caught:
        Accuracy(data=sms, output="logit").measure(spam_model, here)
    assert "did you mean 'logits'" in caught.value.hint
    with pytest.raises(ColdpressError, match="do not belong together"):
        Accuracy(data=sms, task="token_classification").measure(spam_model, here)
    more = DataSource(sms.type, {**sms.parameters, "label_names": ["x", "y", "ham", "spam"]})
    with pytest.raises(ColdpressError, match=r"a label is 3, but the model tells 2 classes apart"):
        Accuracy(data=more).measure(spam_model, here)
    with pytest.raises(ColdpressError, match="labels must be texts"):
        Accuracy(data=sms, task="speech").measure(spam_model, here)


def test_a_model_that_gives_no_numbers_is_refused(here, tmp_path):
    folder = write_linear(tmp_path / "nan", np.full((2, 2), np.nan), ["N", 2])
    np.savez(tmp_path / "set.npz", pixels=np.ones((2, 2)), y=np.array([0, 1]))
    data = DataSource("arrays", {"file": str(tmp_path / "set.npz"), "labels": "y"})
    with pytest.raises(ColdpressError, match="not finite"):
        Accuracy(data=data).measure(Model(folder, "onnx", "nan"), here)
