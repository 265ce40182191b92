"""Models of pictures, sounds and pairs, captured, pressed, verified, and compared with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coldpress
from coldpress.graphs.session import Session
from coldpress.networks.tiny import randomise
from coldpress.parts.task import task_of_settings
from coldpress.target import Target
from coldpress.workflow import Step, Workflow

pytestmark = pytest.mark.full  # torch.export takes half a minute a model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": 320, "max_position_embeddings": 40}
SOUND = {**SIZES, "vocab_size": 32, "conv_dim": (16, 16, 32), "conv_kernel": (10, 8, 4), "conv_stride": (5, 4, 2),
         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 32}  # fmt: skip
YOLOS = {**SIZES, "image_size": [48, 64], "patch_size": 8, "num_detection_tokens": 12, "num_labels": 5}
SEGFORMER = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4],
             "decoder_hidden_size": 32, "num_labels": 5, "image_size": 64}  # fmt: skip
#: class, class of its settings, settings, task, inputs
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "resnet": ("ResNetForImageClassification", "ResNetConfig",
               {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 7, "image_size": 40},
               "image classification"),
    "yolos": ("YolosForObjectDetection", "YolosConfig", YOLOS, "object detection"),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", SEGFORMER, "image segmentation"),
    "wav2vec2_ctc": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SOUND, "speech recognition"),
    "wav2vec2_class": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", {**SOUND, "num_labels": 6},
                       "audio classification"),
    "ast": ("ASTForAudioClassification", "ASTConfig",
            {**SIZES, "num_mel_bins": 32, "max_length": 64, "num_labels": 6}, "audio classification"),
    "clip": ("CLIPModel", "CLIPConfig",
             {"text_config": {**TEXT, "eos_token_id": 319}, "projection_dim": 32,
              "vision_config": {**SIZES, "image_size": 32, "patch_size": 8}},
             "classification of pictures by texts"),
    "choice": ("BertForMultipleChoice", "BertConfig", TEXT, "multiple choice"),
    "clip_text": ("CLIPTextModelWithProjection", "CLIPTextConfig", {**TEXT, "eos_token_id": 319}, "feature extraction"),
}  # fmt: skip


def asked(name: str) -> dict[str, np.ndarray]:
    """Inputs of sizes that no example has."""
    random = np.random.default_rng(7)
    pixels = {"resnet": (40, 40), "yolos": (48, 64), "segformer": (64, 64), "clip": (32, 32)}.get(name)
    given: dict[str, np.ndarray] = {}
    if name in ("clip", "choice", "clip_text"):
        given["input_ids"] = random.integers(5, 319, (5, 2, 17) if name == "choice" else (3, 17))
        given["attention_mask"] = np.ones_like(given["input_ids"])
        given["attention_mask"][..., 1, 9:] = 0
    if pixels:
        given["pixel_values"] = random.standard_normal((5, 3, *pixels)).astype(np.float32)
    if name.startswith("wav2vec2"):
        given["input_values"] = random.standard_normal((3, 5000)).astype(np.float32)
    if name == "ast":
        given["input_values"] = random.standard_normal((5, 64, 32)).astype(np.float32)
    return given


def tiny(name: str, folder: Path) -> Any:
    import torch
    import transformers

    kind, settings, values, _ = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, settings)(**values)).eval()
    randomise(model)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_var.fill_(1.0)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_verified_by_its_task_and_computes_what_transformers_does(name, tmp_path):
    import torch

    model = tiny(name, tmp_path / "source")
    task = task_of_settings(model.config.to_dict())
    assert task is not None and task.title == MODELS[name][3]
    workflow = Workflow(
        str(tmp_path / "source"), (Step("press", {"precision": "fp32"}),), output=str(tmp_path / "out"), metrics=()
    )
    report = coldpress.run(workflow, cache_dir=tmp_path / "cache").data
    assert report["verdict"] == "verified", report["reasons"]
    assert report["quality"]["compared"] > 20
    given = asked(name)
    with torch.no_grad():
        expected = model(**{key: torch.from_numpy(value) for key, value in given.items()})
    found = Session(tmp_path / "out", Target()).run(given)
    names = [key for key, value in expected.items() if isinstance(value, torch.Tensor) and key in found]
    assert names
    for key in names:
        one, two = expected[key].numpy(), found[key]
        if one.shape[:2] == given.get("attention_mask", np.zeros((0, 0))).shape[:2] and one.ndim == 3:
            one, two = one[given["attention_mask"] == 1], two[given["attention_mask"] == 1]
        assert np.abs(one - two).max() < 1e-4 * np.abs(one).max(), key
