"""Quantized Hugging Face folders: which format they are in, and their linear layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Checkpoint, Span
from coldpress.models.packed import awq, compressed_tensors, gptq
from coldpress.models.packed.linear import PackedLinear, largest_block
from coldpress.quant.grid import Grid

_Reader = Callable[[Mapping[str, Span], Mapping[str, Any]], dict[str, PackedLinear]]
_READERS: dict[str, tuple[_Reader, tuple[str, ...]]] = {
    compressed_tensors.METHOD: (compressed_tensors.linears_in, compressed_tensors.PARTS),
    gptq.METHOD: (gptq.linears_in, gptq.PARTS),
    awq.METHOD: (awq.linears_in, awq.PARTS),
}


def quantization_config(folder: Path) -> dict[str, Any] | None:
    """What config.json says about how the weights are packed, or None for a plain checkpoint.

    AutoGPTQ used to write it to quantize_config.json only; that is read where config.json says nothing.
    """
    config = _read_json(folder / "config.json")
    found = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    if found is None and (folder / "quantize_config.json").is_file():
        found = {"quant_method": gptq.METHOD, **_read_json(folder / "quantize_config.json")}
    return found


def usual_grid(config: Mapping[str, Any]) -> Grid | None:
    """The grid that a quantized model's config.json names (first), for a guess before its weights are at hand."""
    found = config.get("quantization_config")
    if not found:
        return None
    _reader(found)
    groups = list((found.get("config_groups") or {}).values())
    settings = groups[0]["weights"] if groups else found
    bits, size = int(settings.get("num_bits") or settings.get("bits") or 4), int(settings.get("group_size") or -1)
    symmetric = bool(settings.get("symmetric", settings.get("sym", not settings.get("zero_point", False))))
    return Grid(bits, largest_block(size) or 256, symmetric)


def read_packed(folder: Path) -> dict[str, PackedLinear]:
    """The quantized linear layers of a folder by module name, in the files' order; empty for a plain checkpoint.

    Only headers, shapes and GPTQ's column order are read. Raises ColdpressError for a format that is not known.
    """
    config = quantization_config(folder)
    if config is None:
        return {}
    reader, _ = _reader(config)
    return reader(Checkpoint(folder).tensors, config)


def packing_tensors(folder: Path, modules: Iterable[str]) -> set[str]:
    """The names of the tensors that ``modules`` are packed in."""
    config = quantization_config(folder)
    parts = () if config is None else _reader(config)[1]
    return {f"{module}.{part}" for module in modules for part in parts}


def remarks(folder: Path) -> list[str]:
    """What a quantized folder asks for besides its weights, that is not done."""
    groups = ((quantization_config(folder) or {}).get("config_groups") or {}).values()
    if any(group.get("input_activations") for group in groups):
        return ["The checkpoint was made for layers with quantized inputs; here only its weights are."]
    return []


def _reader(config: Mapping[str, Any]) -> tuple[_Reader, tuple[str, ...]]:
    method = str(config.get("quant_method", ""))
    if method not in _READERS:
        raise ColdpressError(
            f"the checkpoint is quantized with '{method}', which coldpress does not read",
            hint=f"it reads {', '.join(_READERS)}; for others start from the unquantized model",
        )
    return _READERS[method]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ColdpressError(f"{path} does not exist", hint="name a Hugging Face folder") from error
    except ValueError as error:
        raise ColdpressError(f"{path} is not JSON: {error}") from error
