"""Quantized Hugging Face folders: which format they are in, their linear layers, and all tensors as floats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.networks.checkpoint import Checkpoint, Span
from coldpress.networks.packed import awq, compressed_tensors, gptq
from coldpress.networks.packed.linear import PackedLinear
from coldpress.quant.grid import Floats

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


def read_packed(folder: Path) -> dict[str, PackedLinear]:
    """The quantized linear layers of a folder by module name, in the files' order; empty for a plain checkpoint.

    Only headers, shapes and GPTQ's column order are read. Raises ColdpressError for a format that is not known.
    """
    config = quantization_config(folder)
    if config is None:
        return {}
    reader, _ = _reader(config)
    return reader(Checkpoint(folder).tensors, config)


class FloatTensors:
    """All tensors of a quantized folder in float32 under the names that they have in a plain checkpoint.

    A quantized linear layer appears as ``<module>.weight``; what packs it does not appear.
    """

    def __init__(self, folder: Path):
        stored, self._linears = Checkpoint(folder).tensors, read_packed(folder)
        config = quantization_config(folder)
        parts = () if config is None else _reader(config)[1]
        hidden = {f"{module}.{part}" for module in self._linears for part in parts}
        self._plain = {name: span for name, span in stored.items() if name not in hidden}

    def names(self) -> list[str]:
        return [*self._plain, *(f"{module}.weight" for module in self._linears)]

    def shape(self, name: str) -> tuple[int, ...]:
        linear = self._linear(name)
        return self._plain[name].shape if linear is None else (linear.rows, linear.columns)

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop`` of a tensor along its first axis."""
        linear = self._linear(name)
        return self._plain[name].rows(start, stop) if linear is None else linear.dequantized(start, stop)

    def _linear(self, name: str) -> PackedLinear | None:
        return self._linears.get(name.removesuffix(".weight")) if name.endswith(".weight") else None


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
