"""What transformers makes of a folder: logits in float32, and prompts as tokens. GPTQ and AWQ, for which it needs
packages that are not installed here, are unpacked by the formats' definitions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


class NoTruthError(Exception):
    """Transformers does not load the folder, or would fill some of its weights at random."""


def network(folder: Path) -> Any:
    """The causal language model of a folder. Raises NoTruthError."""
    import transformers

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        method = (config.get("quantization_config") or {}).get("quant_method")
        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
        if method in ("gptq", "awq"):
            settings = transformers.AutoConfig.from_pretrained(folder)
            del settings.quantization_config
            kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
            options |= {"config": settings, "state_dict": _unpacked(folder, config["quantization_config"])}
            model, found = kind.from_pretrained(None, output_loading_info=True, **options)
        else:
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, **options
            )
    except Exception as error:
        raise NoTruthError(f"{type(error).__name__}: {error}") from error
    if found["missing_keys"] or found["mismatched_keys"]:
        raise NoTruthError(
            f"random weights: {sorted(found['missing_keys'])[:3]} {sorted(found['mismatched_keys'])[:3]}"
        )
    return model.eval()


def logits(model: Any, ids: Sequence[int]) -> np.ndarray:
    """``[tokens, vocabulary]``. Raises NoTruthError."""
    try:
        with torch.no_grad():
            found: np.ndarray = model(torch.tensor([list(ids)])).logits[0].float().numpy()
    except Exception as error:
        raise NoTruthError(f"{type(error).__name__}: {error}") from error
    return found


def tokenizer(folder: Path) -> Any:
    """Raises NoTruthError."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise NoTruthError(f"{type(error).__name__}: {error}") from error


def _unpacked(folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = {
        name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    found = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            parts = {key: tensors.get(f"{module}.{key}") for key in ("qweight", "qzeros", "scales", "g_idx")}
            unpack = _gptq if config["quant_method"] == "gptq" else _awq
            found[f"{module}.weight"] = unpack(parts, config)
        elif part not in ("qzeros", "scales", "g_idx") and f"{module}.qweight" not in tensors:
            found[name] = tensor.float()
    return found


def _gptq(parts: dict[str, Any], config: dict[str, Any]) -> torch.Tensor:
    """``weight[out, in]``; codes lie along the inputs, zero points along the outputs, one less than they are in version
    1."""
    bits = config["bits"]
    codes, zeros = (
        _words(parts["qweight"].T, bits, range(32 // bits)).T,
        _words(parts["qzeros"], bits, range(32 // bits)),
    )
    zeros = zeros + (0 if config.get("checkpoint_format") == "gptq_v2" else 1)
    groups = parts["g_idx"] if parts["g_idx"] is not None else torch.arange(len(codes)) // config["group_size"]
    return ((codes - zeros[groups.long()]) * parts["scales"].float()[groups.long()]).T.contiguous()


def _awq(parts: dict[str, Any], config: dict[str, Any]) -> torch.Tensor:
    """``weight[out, in]``; eight codes of a word are outputs in an order of their own."""
    codes, zeros = (_words(parts[key], config["bits"], _AWQ_ORDER) for key in ("qweight", "qzeros"))
    group = config["group_size"]
    return (
        (codes - zeros.repeat_interleave(group, 0)) * parts["scales"].float().repeat_interleave(group, 0)
    ).T.contiguous()


def _words(words: torch.Tensor, bits: int, order: Sequence[int]) -> torch.Tensor:
    """``[rows, words * codes]``: the codes of each 32-bit word in a row; ``order``: which of the word's nibbles comes
    first."""
    shifts = torch.tensor([bits * place for place in order])
    return ((words.long()[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1)
