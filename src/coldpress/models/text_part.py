"""The text model inside a multimodal checkpoint (Gemma 3, Qwen-VL, Mistral 3, LLaVA, ...) as a checkpoint of its own.

Such a checkpoint nests the configuration of its text model as ``text_config`` and names its tensors
``language_model.model.*``, ``model.language_model.*`` or, older ones, as a plain text model does. What sees and hears
is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Checkpoint, Span

#: parts of a configuration that are another model beside the text model
_SENSES = ("vision_config", "audio_config", "audio_encoder_config", "speech_config", "visual", "vision_tower")
#: model types of text models that transformers has only inside a multimodal one -> the plain ones that they are on text
#: alone
_PLAIN = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
#: model types of encoders of texts beside those of pictures
_ENCODERS = ("align_text_model", "clip_text_model", "metaclip_2_text_model", "siglip_text_model", "siglip2_text_model")
#: model types that were also saved with the settings of the text model beside those of the whole
_FLAT = ("qwen2_vl", "qwen2_5_vl")
#: settings that the whole model may hold for its text model
_SHARED = (
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "quantization_config",
)
#: how the two say where a tensor of the text model lies, the longest first -> where it lies in the text model
_PLACES = {
    "model.language_model.lm_head.": "lm_head.",
    "model.language_model.model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.text_model.": "model.",
    "lm_head.": "lm_head.",
    "model.layers.": "model.layers.",
    "model.embed_tokens.": "model.embed_tokens.",
    "model.norm.": "model.norm.",
}


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a text model with others that see or hear beside it; two encoders whose vectors
    are compared, as CLIP's, are not."""
    if str((config.get("text_config") or {}).get("model_type")) in _ENCODERS:
        return False
    senses = [name for name in _SENSES if isinstance(config.get(name), dict)]
    has_text = isinstance(config.get("text_config"), dict) or config.get("model_type") in _FLAT
    return bool(senses) and has_text


def text_config(folder: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The configuration of the text model, whole. ColdpressError where transformers has no class for it alone."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    whole = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    config: dict[str, Any] = whole.get_text_config(decoder=True).to_dict()
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = raw.get("text_config") or {}
    for name in _SHARED:
        if name in raw and name not in said:
            config[name] = raw[name]
    config["tie_word_embeddings"] = bool(getattr(whole, "tie_word_embeddings", config.get("tie_word_embeddings")))
    config["model_type"] = _PLAIN.get(config["model_type"], config["model_type"])
    class_name = CLASSES.get(config["model_type"])
    if class_name is None or "ConditionalGeneration" in str(class_name):
        raise ColdpressError(
            f"transformers has no class for the text model '{config['model_type']}' of {raw.get('model_type')} alone",
            hint="save the text model as a checkpoint of its own, and press that",
        )
    return {**_without_sections(config), "architectures": [class_name]}


def _without_sections(config: dict[str, Any]) -> dict[str, Any]:
    """Without what says which part of a rotation is for rows and columns of pictures; in a text, all are the same
    position."""
    rotation = config.get("rope_parameters")
    if not isinstance(rotation, dict) or "mrope_section" not in rotation:
        return config
    kept = {name: value for name, value in rotation.items() if not name.startswith("mrope") and name != "type"}
    if kept.get("rope_type") in (None, "mrope"):
        kept["rope_type"] = "default"
    return {**config, "rope_parameters": kept}


def text_tensors(tensors: Mapping[str, Span]) -> tuple[dict[str, Span], dict[str, int]]:
    """The tensors of the text model by their names there; and of each part that is left out, how many weights it
    has."""
    kept: dict[str, Span] = {}
    left: dict[str, int] = {}
    for name, span in tensors.items():
        place = next((prefix for prefix in _PLACES if name.startswith(prefix)), None)
        if place is not None:
            kept[_PLACES[place] + name.removeprefix(place)] = span
        else:
            part = name.removeprefix("model.").split(".")[0]
            left[part] = left.get(part, 0) + math.prod(span.shape)
    return kept, left


def what_is_left_out(folder: Path) -> str:
    """What is left out of ``folder`` when its text model is taken, as a sentence."""
    _, left = text_tensors(Checkpoint(folder).tensors)
    parts = ", ".join(f"{part} ({count:,} weights)" for part, count in left.items())
    whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = (whole.get("architectures") or [whole.get("model_type")])[0]
    return f"only the text model of {name} is used; left out: {parts or 'nothing'}"


def take_text_model(folder: Path, output: Path, *, trust_remote_code: bool = False) -> None:
    """Write the text model of ``folder`` to ``output``, an empty folder, as a Hugging Face folder."""
    from coldpress.models.quantized_folder import copy_other_files, write_checkpoint

    config = text_config(folder, trust_remote_code=trust_remote_code)
    kept, _ = text_tensors(Checkpoint(folder).tensors)
    if not kept:
        raise ColdpressError(
            f"no tensor of {folder} is of its text model", hint="is config.json that of these weights?"
        )
    write_checkpoint(kept, output)
    copy_other_files(folder, output)
    (output / "config.json").write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
