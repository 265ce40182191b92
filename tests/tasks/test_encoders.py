"""Encoders of every task, captured by torch.export or mobius, pressed, verified, and compared with transformers."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coldpress
from coldpress.errors import ColdpressError
from coldpress.graphs.session import Session
from coldpress.parts.task import find_task
from coldpress.target import Target
from coldpress.workflow import Step, Verify, Workflow
from tests.conftest import write_tokenizer

BERT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320,
        "max_position_embeddings": 64}  # fmt: skip
MODELS = {
    "text_classification": ("BertForSequenceClassification", "BertConfig", {**BERT, "num_labels": 3}),
    "token_classification": ("DistilBertForTokenClassification", "DistilBertConfig",
                             {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "vocab_size": 320,
                              "max_position_embeddings": 64, "num_labels": 5}),
    "question_answering": ("BertForQuestionAnswering", "BertConfig", BERT),
    "masked_lm": ("AlbertForMaskedLM", "AlbertConfig", {**BERT, "embedding_size": 32}),
    "feature_extraction": ("RobertaModel", "RobertaConfig", BERT),
    "image_classification": ("ViTForImageClassification", "ViTConfig",
                             {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                              "num_attention_heads": 4, "image_size": 32, "patch_size": 8, "num_labels": 7}),
}  # fmt: skip
#: torch.export takes half a minute a model: of the tasks, one of text and one of images are tried each time
QUICK, LONG = ("text_classification", "image_classification"), pytest.mark.full


def tiny(name: str, folder: Path, **more: Any) -> Any:
    """A random model of transformers, its weights large enough to matter, saved to a folder."""
    import torch
    import transformers

    kind, settings, values = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, settings)(**{**values, **more})).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def pressed(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    workflow = Workflow(str(folder), (Step("press", options),), output=str(output), metrics=())
    return coldpress.run(workflow, cache_dir=output.parent / "cache").data


def texts() -> dict[str, np.ndarray]:
    """Three texts of different lengths, of sizes that no example has."""
    ids = np.random.default_rng(7).integers(5, 320, (3, 29))
    mask = np.ones_like(ids)
    mask[1, 20:] = mask[2, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def asked(name: str) -> dict[str, np.ndarray]:
    if name == "image_classification":
        return {"pixel_values": np.random.default_rng(7).standard_normal((5, 3, 32, 32)).astype(np.float32)}
    return texts()


def outputs_of(model: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    with torch.no_grad():
        found = model(**{name: torch.from_numpy(value) for name, value in given.items()})
    return {name: value.numpy() for name, value in found.items()}


def shown(array: np.ndarray, given: dict[str, np.ndarray]) -> np.ndarray:
    """An output without what is said of padding."""
    mask = given.get("attention_mask")
    return array if mask is None or array.shape[:2] != mask.shape else array[mask == 1]


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=LONG) for name in MODELS])
def test_a_model_of_every_task_is_verified_and_computes_what_transformers_does(name, tmp_path):
    model = tiny(name, tmp_path / "source")
    report = pressed(tmp_path / "source", tmp_path / "out", precision="fp32")
    assert report["verdict"] == "verified", report["reasons"]
    assert report["quality"]["compared"] > 50
    given = asked(name)
    expected, found = outputs_of(model, given), Session(tmp_path / "out", Target()).run(given)
    assert expected.keys() & found.keys()
    for output in expected.keys() & found.keys():
        one, two = (shown(array, given) for array in (expected[output], found[output]))
        assert np.abs(one - two).max() < 1e-4 * np.abs(one).max(), output


@pytest.mark.parametrize("precision", ["int8", pytest.param("int4", marks=LONG)])
def test_weights_of_a_traced_model_are_quantized_and_shared_ones_once(precision, tmp_path):
    tiny("masked_lm", tmp_path / "source", num_hidden_layers=4)
    report = pressed(tmp_path / "source", tmp_path / "out", precision=precision)
    assert report["verdict"] == "verified", report["reasons"]
    names = [layer["name"] for layer in report["layers"]]
    assert len(names) == len(set(names)) and any("albert_layers.0.ffn" in name for name in names)


def test_a_model_that_is_no_longer_its_source_is_worse_than_the_tolerance(tmp_path):
    tiny("text_classification", tmp_path / "source")
    workflow = Workflow(
        str(tmp_path / "source"), (Step("press", {"precision": "int4", "block_size": 64}),), metrics=(),
        output=str(tmp_path / "out"), verify=Verify(tolerance="distance=0.0001"),
    )  # fmt: skip
    report = coldpress.run(workflow, cache_dir=tmp_path / "cache")
    assert report.exit_code == 3 and "distance of the scores" in report.data["reasons"][0]


@pytest.mark.parametrize(
    ("modes", "normalizes"), [(["mean"], True), (["cls"], False), (["max", "mean_sqrt_len"], False), (["last"], True)]
)
@pytest.mark.parametrize("kind", ["BertModel", pytest.param("RobertaModel", marks=LONG)])
def test_sentence_embeddings_are_pooled_in_the_graph(modes, normalizes, kind, tmp_path):
    source = tmp_path / "source"
    MODELS["pooled"] = (kind, kind.replace("Model", "Config"), BERT)
    model = tiny("pooled", source)
    write_modules(source, modes, normalizes)
    report = pressed(source, tmp_path / "out", precision="fp32")
    assert report["verdict"] == "verified", report["reasons"]
    assert report["quality"]["ranking"] > 0.9999
    given = texts()
    tokens = outputs_of(model, given)["last_hidden_state"].astype(np.float64)
    expected = np.stack([by_hand(row[mask == 1], modes, normalizes)
                         for row, mask in zip(tokens, given["attention_mask"], strict=True)])  # fmt: skip
    found = Session(tmp_path / "out", Target()).run(given)["sentence_embedding"]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def by_hand(tokens: np.ndarray, modes: list[str], normalizes: bool) -> np.ndarray:
    """The vector of one text of ``tokens [tokens, hidden]`` that holds no padding."""
    ways = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.max(0), "last": tokens[-1],
            "mean_sqrt_len": tokens.sum(0) / len(tokens) ** 0.5}  # fmt: skip
    vector = np.concatenate([ways[mode] for mode in modes])
    return vector / np.linalg.norm(vector) if normalizes else vector


def write_modules(folder: Path, modes: list[str], normalizes: bool) -> None:
    names = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last": "lasttoken",
             "mean_sqrt_len": "mean_sqrt_len_tokens"}  # fmt: skip
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    modules = [{"idx": place, "name": str(place), "path": "" if place == 0 else f"{place}_{kind}",
                "type": f"sentence_transformers.models.{kind}"} for place, kind in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    settings = {f"pooling_mode_{name}": mode in modes for mode, name in names.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 64, **settings}))


def test_a_module_that_has_no_place_in_the_graph_is_refused_before_work(tmp_path):
    tiny("feature_extraction", tmp_path / "source")
    write_modules(tmp_path / "source", ["mean"], False)
    modules = json.loads((tmp_path / "source/modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "source/modules.json").write_text(json.dumps(modules))
    with pytest.raises(ColdpressError, match="the module Dense"):
        pressed(tmp_path / "source", tmp_path / "out", precision="fp32")
    assert not (tmp_path / "out").exists()


def test_texts_with_too_few_sentences_to_compare_on_are_refused(tmp_path):
    tiny("feature_extraction", tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    (tmp_path / "text.txt").write_text("One sentence. Another one! " * 20)
    with pytest.raises(ColdpressError, match=r"text\.txt: 2 different sentences") as caught:
        list(
            islice(
                find_task("feature_extraction").examples(
                    tmp_path / "model", ["input_ids"], [str(tmp_path / "text.txt")]
                ),
                1,
            )
        )
    assert caught.value.exit_code == 2 and "--eval_data" in caught.value.hint
