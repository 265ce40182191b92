"""A quantized folder's tensors as spans with the names and shapes that they have in a plain checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.models.checkpoint import Checkpoint, Span
from coldpress.models.packed import embedding
from coldpress.models.packed.folder import packing_tensors, read_packed, remarks
from coldpress.models.packed.linear import PackedLinear
from coldpress.quant.grid import Codes, Floats, Grid


@dataclass(frozen=True)
class PackedSpan(Span):
    """Rows of a packed weight: read as float32, or as the codes that are stored.

    ``file`` is the folder, ``name`` is ``<module>.weight`` and ``first`` the row of that weight with which this begins.
    Nothing is stored as floats, so offset and strides only say what they would be.
    """

    first: int

    @classmethod
    def whole(cls, folder: Path, linear: PackedLinear) -> PackedSpan:
        shape = (linear.rows, linear.columns)
        return cls(f"{linear.module}.weight", str(folder), "F32", shape, 0, (linear.columns, 1), 0)

    @property
    def _linear(self) -> PackedLinear:
        return _linears(self.file, _state(self.file))[self.name.removesuffix(".weight")]

    @property
    def grid(self) -> Grid:
        """The grid of the codes. ColdpressError where no ONNX kernel reads them."""
        return self._linear.grid

    @property
    def scale_dtype(self) -> str:
        return self._linear.scale_dtype

    def cut(self, start: int, stop: int) -> PackedSpan:
        return replace(self, shape=(stop - start, *self.shape[1:]), first=self.first + start)

    def view(self) -> np.ndarray:
        """All values, computed: this takes the memory of the float weight."""
        return self.rows(0, self.shape[0])

    def rows(self, start: int, stop: int) -> Floats:
        return self._linear.dequantized(self.first + start, self.first + stop)

    def codes(self, start: int, stop: int) -> Codes:
        """Rows ``start`` to ``stop`` exactly as they are stored, the last block padded."""
        return self._linear.rows_as_codes(self.first + start, self.first + stop)


def _state(folder: str) -> tuple[int, ...]:
    """When the files of a folder were written: what was read of it holds until that changes."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.stat().st_mtime_ns for entry in entries))


@lru_cache(maxsize=4)
def _linears(folder: str, _written: tuple[int, ...]) -> dict[str, PackedLinear]:
    return {**read_packed(Path(folder)), **embedding.read(Path(folder))}


def span_from_json(data: Mapping[str, Any]) -> Span:
    return PackedSpan.from_json(data) if "first" in data else Span.from_json(data)


def plain_tensors(folder: Path) -> dict[str, Span]:
    """Every tensor of a folder as a plain checkpoint has it; those of quantized layers are ``PackedSpan``."""
    linears, stored = read_packed(folder), Checkpoint(folder).tensors
    hidden = packing_tensors(folder, linears)
    packed = [PackedSpan.whole(folder, linear) for linear in linears.values()]
    return {name: span for name, span in stored.items() if name not in hidden} | {span.name: span for span in packed}


def tensors_to_press(folder: Path) -> tuple[dict[str, Span], list[str]]:
    """As ``plain_tensors``, with the codes of embeddings where they are kept; and what is to be said of those."""
    tensors, warnings = plain_tensors(folder), remarks(folder)
    for linear in embedding.read(folder).values():
        span = PackedSpan.whole(folder, linear)
        table = tensors.get(span.name)
        if table is not None and embedding.still_describes(linear, table):
            tensors[span.name] = span
        else:
            warnings.append(
                f"{embedding.EMBEDDING_CODES} was not used: '{span.name}' of the checkpoint no longer has the values of"
                f" these {linear.bits}-bit codes."
            )
    return tensors, warnings


class FloatTensors:
    """All tensors of a quantized folder in float32 under the names that they have in a plain checkpoint.

    A quantized linear layer appears as ``<module>.weight``; what packs it does not appear.
    """

    def __init__(self, folder: Path):
        self._tensors = plain_tensors(folder)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop`` of a tensor along its first axis."""
        return self._tensors[name].rows(start, stop)
