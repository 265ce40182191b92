"""Tensors of a graph that others wrote, as byte ranges of files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from coldpress.graphs.layout import Place
from coldpress.models.checkpoint import Span

#: ONNX type -> the name of safetensors for it; the types of weights
FLOATS = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}
_COPY_BYTES = 1 << 24


class Spans:
    """Tensors as byte ranges of files; those that lie inside a graph are spooled to ``spool`` first."""

    def __init__(self, spool: Path):
        self._spool = spool
        self._ends: dict[int, tuple[Any, int]] = {}  # keeps the tensors alive, so that no id is given twice

    def of(self, name: str, tensor: Any) -> Span:
        """A float tensor as it lies in its file, mapped, not read."""
        file, offset = self._place(name, tensor)
        return Span.contiguous(name, file, FLOATS[tensor.dtype], tuple(int(size) for size in tensor.shape), offset)

    def bytes_of(self, name: str, tensor: Any) -> Span:
        """The bytes of a tensor of whatever type."""
        file, offset = self._place(name, tensor)
        return Span.contiguous(name, file, "U8", (tensor.nbytes,), offset)

    def _place(self, name: str, tensor: Any) -> tuple[Path, int]:
        if isinstance(tensor, ir.ExternalTensor):
            return Path(tensor.path), tensor.offset or 0
        if id(tensor) not in self._ends:
            with self._spool.open("ab") as stream:
                self._ends[id(tensor)] = tensor, stream.tell()
                stream.write(tensor.tobytes())
        return self._spool, self._ends[id(tensor)][1]


def copy_bytes(span: Span, place: Place, data: np.ndarray) -> None:
    """Copy the bytes of a span to their place in a mapped data file, a piece at a time."""
    source, size = span.view(), math.prod(span.shape)
    for start in range(0, size, _COPY_BYTES):
        stop = min(start + _COPY_BYTES, size)
        data[place.offset + start : place.offset + stop] = source[start:stop]
