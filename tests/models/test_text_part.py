"""The text model of a multimodal checkpoint answers a text as the whole model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coldpress.errors import ColdpressError
from coldpress.graphs.trial import judge
from coldpress.models.model import Model
from coldpress.models.sources import find_model
from coldpress.models.text_part import is_multimodal, take_text_model
from coldpress.networks.tiny import randomise

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
#: class -> settings of its text model, of its vision model
WHOLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Gemma3ForConditionalGeneration": ({"head_dim": 16, "sliding_window": 8}, {"image_size": 32}),
    "Mistral3ForConditionalGeneration": ({"model_type": "mistral", "head_dim": 16}, {"image_size": 32}),
    "LlavaForConditionalGeneration": ({"model_type": "llama"}, {"model_type": "clip_vision_model", "image_size": 32}),
    "Qwen2VLForConditionalGeneration": (SECTIONS, {"depth": 1, "embed_dim": 32, "num_heads": 2}),
}


def whole(name: str, folder: Path) -> Any:
    import transformers

    text, vision = WHOLE[name]
    config_class = getattr(transformers, name.replace("ForConditionalGeneration", "Config"))
    config = config_class(text_config={**TEXT, **text}, vision_config={**VISION, **vision}, image_token_id=310)
    model = getattr(transformers, name)(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", WHOLE)
def test_the_pressed_text_model_is_the_whole_one_on_text(name: str, tmp_path: Path) -> None:
    model, text = whole(name, tmp_path / "whole"), tmp_path / "text"
    text.mkdir()
    take_text_model(tmp_path / "whole", text)
    verdict = judge(model, text, tmp_path / "pressed")
    assert verdict.is_right, verdict


def test_a_folder_says_whether_it_is_one(tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole("Gemma3ForConditionalGeneration", tmp_path)
    assert find_model(str(tmp_path)).format == "multimodal"
    [said] = caplog.messages
    assert "text model of Gemma3ForConditionalGeneration" in said and "vision_tower (" in said
    assert find_model(str(tiny_model)).format == "hf"
    assert not is_multimodal(json.loads((tiny_model / "config.json").read_text()))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    whole("Gemma3ForConditionalGeneration", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: value for name, value in load_file(file).items() if "language_model" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "text").mkdir()
    with pytest.raises(ColdpressError, match="is of its text model"):
        take_text_model(Model(tmp_path, "multimodal", "key").path, tmp_path / "text")
