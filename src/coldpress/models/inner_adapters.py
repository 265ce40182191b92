"""Adapters that lie inside a checkpoint, beside the layers they change, and become PEFT folders.

Phi-4-multimodal (https://huggingface.co/microsoft/Phi-4-multimodal-instruct) is such a model:
``...qkv_proj.lora_A.speech.weight`` stands beside ``...qkv_proj.base_layer.weight``, and config.json says rank and
alpha as ``speech_lora``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.adapter_folder import CONFIG
from coldpress.models.checkpoint import Checkpoint, Span, as_float32
from coldpress.models.model import Model
from coldpress.models.peft import WEIGHTS

_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.(?P<adapter>\w+)\.weight")


def find(folder: Path) -> dict[str, dict[str, Span]]:
    """The adapters of a checkpoint: by name, their tensors by the names that PEFT gives them."""
    found: dict[str, dict[str, Span]] = {}
    for name, span in Checkpoint(folder).tensors.items():
        if match := _TENSOR.fullmatch(name):
            module = match["module"].removeprefix("base_model.model.")
            found.setdefault(match["adapter"], {})[f"base_model.model.{module}.lora_{match['part']}.weight"] = span
    return found


def write(model: Model, name: str, tensors: Mapping[str, Span], folder: Path, dtype: str = "float32") -> None:
    """Write one adapter of a checkpoint as a PEFT folder. ColdpressError where config.json does not say its alpha."""
    from safetensors.numpy import save_file

    file = model.path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    said = config.get(f"{name}_lora") or {}
    if "lora_alpha" not in said:
        raise ColdpressError(
            f"{file} does not say the scaling of the adapter '{name}' ({name}_lora.lora_alpha)",
            hint="add it: the product of the two matrices is scaled by alpha / r",
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: np.ascontiguousarray(as_float32(span.view(), span.dtype).astype(dtype)) for key, span in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    (folder / CONFIG).write_text(json.dumps(_config(model, tensors, said), indent=2), encoding="utf-8")


def _config(model: Model, tensors: Mapping[str, Span], said: Mapping[str, Any]) -> dict[str, Any]:
    """What PEFT must know; modules whose rank is not the usual one are named with theirs."""
    ranks = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): span.shape[0]
        for name, span in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    usual = int(said.get("r") or max(ranks.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.hub_id or model.path.name,
        "r": usual,
        "lora_alpha": said["lora_alpha"],
        "target_modules": sorted({module.rpartition(".")[2] for module in ranks}),
        "rank_pattern": {re.escape(module): rank for module, rank in ranks.items() if rank != usual},
        "bias": "none",
        "inference_mode": True,
    }
