"""Filling a model's data file: every weight is read, quantized and written in chunks of rows, on all cores.

Workers that quantize are forks: threads of one interpreter take turns at its lock after each operation on a chunk, and
two of them were hardly faster than one. What is only copied is copied by threads, which share this process's memory.

Neither the float model nor the quantized one is ever in memory: sources are mapped, and the data file is
mapped for writing, so that the system writes pages back when it likes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.graphs.forks import results
from coldpress.graphs.kernels import Encoding
from coldpress.graphs.layout import Layout, Place, Plain, Quantized
from coldpress.models.checkpoint import Span, as_float32
from coldpress.models.lattices import as_record
from coldpress.models.packed.spans import PackedSpan
from coldpress.models.provenance import LatticeRecord
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.lattice import lattice_of, seems_on_lattice
from coldpress.quant.pack import pack, pack_zero_points

#: weights a task holds as float32 at a time; with the quantizer's temporaries about 16 MB a worker
CHUNK_WEIGHTS = 1 << 20
#: rows that tell whether a weight was quantized before
_LOOKED_AT = 64
#: so many are done sooner than workers are started
_FEW_WEIGHTS = 1 << 21

Quantizer = Callable[[np.ndarray, Grid], Codes]


@dataclass
class LayerError:
    """What quantizing one weight cost: ``relative_error`` is ``|W - W'| / |W|`` (Frobenius norms).

    ``was_stored``: the checkpoint held the codes already, and they were taken as they are.
    """

    name: str
    role: str
    encoding: Encoding
    relative_error: float
    bytes: int
    was_stored: bool


@dataclass
class _Sums:
    error: float = 0.0
    weight: float = 0.0


def fill(
    layout: Layout,
    folder: Path,
    quantizer: Quantizer,
    *,
    threads: int = 1,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> list[LayerError]:
    """Write ``folder / layout.data``; returns the error of each quantized weight, in the layout's order."""
    file = folder / layout.data
    _allocate(file, layout.size_bytes)
    if not layout.size_bytes:
        return []
    data = np.memmap(file, mode="r+", dtype=np.uint8)
    sums = {entry.name: _Sums() for entry in layout.quantized}
    total = sum(entry.rows * entry.columns for entry in layout.quantized) + sum(
        math.prod(entry.shape) for entry in layout.plain
    )
    done = 0
    tasks, workers = list(_tasks(layout, data, quantizer)), threads if total > _FEW_WEIGHTS else 1
    only_copied = all(isinstance(task, _Store | _Copy) for task in tasks)
    for name, weights, error, weight in results(tasks, workers, in_threads=only_copied):
        if name in sums:
            sums[name].error += error
            sums[name].weight += weight
        done += weights
        progress(done, total)
    data.flush()
    return [_layer_error(entry, sums[entry.name]) for entry in layout.quantized]


def lattices_in(layouts: Sequence[Layout]) -> dict[str, tuple[bool, LatticeRecord | None]]:
    """Whether weights that were quantized lay on their grid already, by a few of their rows, else on which other; by
    layer."""
    found: dict[str, tuple[bool, LatticeRecord | None]] = {}
    for entry in (entry for layout in layouts for entry in layout.quantized if not entry.is_stored):
        rows = entry.sources[0].rows(0, min(_LOOKED_AT, entry.sources[0].shape[0]))
        kept = seems_on_lattice(rows, entry.grid)
        found[entry.name.removesuffix(".weight")] = kept, None if kept else as_record(lattice_of(rows))
    return found


def _allocate(file: Path, size: int) -> None:
    """Take the space on the disk now: a mapped page that finds none later would kill the process."""
    with file.open("wb") as stream:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        zeros = bytes(1 << 20)
        for start in range(0, size, len(zeros)):
            stream.write(zeros[: size - start])


_Task = Callable[[], tuple[str, int, float, float]]


def _tasks(layout: Layout, data: np.ndarray, quantizer: Quantizer) -> Iterator[_Task]:
    for quantized in layout.quantized:
        for span, start, stop, row in _row_ranges(quantized.sources, quantized.columns):
            if quantized.is_stored and isinstance(span, PackedSpan):
                yield _Store(quantized, span, start, stop, row, data)
            else:
                yield _Quantize(quantized, span, start, stop, row, data, quantizer)
    for plain in layout.plain:
        columns = max(1, math.prod(plain.sources[0].shape[1:]))
        for span, start, stop, row in _row_ranges(plain.sources, columns):
            yield _Copy(plain, span, start, stop, row, data)


def _row_ranges(sources: list[Span], columns: int) -> Iterator[tuple[Span, int, int, int]]:
    """(source, first row, last row + 1, row in the stacked result) in chunks of about CHUNK_WEIGHTS."""
    above, step = 0, max(1, CHUNK_WEIGHTS // columns)
    for span in sources:
        rows = span.shape[0] if span.shape else 1
        for start in range(0, rows, step):
            yield span, start, min(start + step, rows), above + start
        above += rows


@dataclass
class _Quantize:
    entry: Quantized
    span: Span
    start: int
    stop: int
    row: int
    data: np.ndarray
    quantizer: Quantizer

    def __call__(self) -> tuple[str, int, float, float]:
        entry = self.entry
        weight = np.ascontiguousarray(self.span.rows(self.start, self.stop))
        norm = _finite_norm(weight, self.span)
        codes = self.quantizer(weight, entry.grid)
        _write_codes(self.data, entry, self.row, codes)
        difference = dequantize(codes, entry.columns)
        np.subtract(difference, weight, out=difference)
        return entry.name, weight.size, _square(difference), norm


@dataclass
class _Store:
    """Codes go over as the checkpoint has them; only the scales may lose something, to a narrower type."""

    entry: Quantized
    span: PackedSpan
    start: int
    stop: int
    row: int
    data: np.ndarray

    def __call__(self) -> tuple[str, int, float, float]:
        entry, codes = self.entry, self.span.codes(self.start, self.stop)
        written = _write_codes(self.data, entry, self.row, codes)
        if not np.isfinite(written).all():
            raise ColdpressError(
                f"'{self.span.name}' in {self.span.file} has a scale that is not finite as {entry.scale_dtype}",
                hint="the checkpoint is damaged" if entry.scale_dtype == "float32" else "use another --precision",
            )
        error = weight = 0.0
        if entry.scale_dtype != "float32":
            weight = _square(dequantize(codes, entry.columns))
            error = _square(dequantize(replace(codes, scales=written - codes.scales), entry.columns))
        return entry.name, (self.stop - self.start) * entry.columns, error, weight


def _write_codes(data: np.ndarray, entry: Quantized, row: int, codes: Codes) -> np.ndarray:
    """Write the codes of some rows to their place, from ``row`` on; returns the scales as they came out, in float32."""
    rows, bits = slice(row, row + len(codes.codes)), entry.encoding.bits
    _table(data, entry.codes, np.uint8, entry.rows)[rows] = pack(codes.codes, bits).reshape(len(codes.codes), -1)
    scales = _table(data, entry.scales, _STORED[entry.scale_dtype], entry.rows)[rows]
    _write_cast(scales, codes.scales, entry.scale_dtype)
    if entry.zero_points is not None:
        zeros = pack_zero_points(_zero_points(codes, bits), bits)
        _table(data, entry.zero_points, np.uint8, entry.rows)[rows] = zeros
    return as_float32(scales, "BF16" if entry.scale_dtype == "bfloat16" else "")


@dataclass
class _Copy:
    entry: Plain
    span: Span
    start: int
    stop: int
    row: int
    data: np.ndarray

    def __call__(self) -> tuple[str, int, float, float]:
        entry, dtype = self.entry, _STORED[self.entry.dtype]
        place = self.data[entry.place.offset : entry.place.offset + entry.place.bytes].view(dtype).reshape(entry.shape)
        span = self.span if self.span.shape else replace(self.span, shape=(1,), strides=(1,))
        is_float = entry.dtype in _FLOATS
        values = span.rows(self.start, self.stop) if is_float else span.view()[self.start : self.stop]
        if is_float:
            _finite_norm(values, self.span)
        rows = slice(self.row, self.row + len(values))
        target = (
            place[:, rows] if entry.transposed else place.reshape(-1, *place.shape[1:])[rows] if place.shape else place
        )
        if entry.dtype == "float16":
            _require_in_range(values, self.span)
        _write_cast(target, values.T if entry.transposed else values, entry.dtype)
        return entry.name, values.size, 0.0, 0.0


def _require_in_range(values: np.ndarray, span: Span) -> None:
    """Raise ColdpressError for numbers that would be infinite in float16."""
    largest, most = float(np.abs(values).max(initial=0.0)), float(np.finfo(np.float16).max)
    if largest > most:
        raise ColdpressError(
            f"tensor '{span.name}' in {span.file} goes to {largest:.6g}, float16 only to {most:.0f}",
            hint="use --precision fp32, or bf16, which has the range of float32",
        )


_FLOATS = ("float32", "float16", "bfloat16")
_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64, "int32": np.int32}


def _table(data: np.ndarray, place: Place, dtype: type, rows: int) -> np.ndarray:
    return data[place.offset : place.offset + place.bytes].view(dtype).reshape(rows, -1)


def _write_cast(target: np.ndarray, values: np.ndarray, dtype: str) -> None:
    """Write float32 values as ``dtype``; bfloat16 rounds to nearest even."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        values = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    target[...] = values


def _zero_points(codes: Codes, bits: int) -> np.ndarray:
    if codes.zero_points is not None:
        return codes.zero_points
    return np.full(codes.scales.shape, 1 << (bits - 1), np.uint8)


def _square(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _finite_norm(weight: np.ndarray, span: Span) -> float:
    """The sum of squares; a NaN or an infinity anywhere shows in it, and then is looked for and named."""
    norm = _square(np.ascontiguousarray(weight))
    if math.isfinite(norm):
        return norm
    bad = np.argwhere(~np.isfinite(weight))
    if len(bad) == 0:
        return float(np.sum(np.square(weight, dtype=np.float64)))
    raise ColdpressError(
        f"tensor '{span.name}' in {span.file} holds {weight[tuple(bad[0])]} (first at {bad[0].tolist()} of a chunk)",
        hint="the checkpoint is damaged or its training diverged: get another copy",
    )


def _layer_error(entry: Quantized, sums: _Sums) -> LayerError:
    relative = math.sqrt(sums.error / sums.weight) if sums.weight else 0.0
    name = entry.name.removesuffix(".weight")
    return LayerError(name, entry.role, entry.encoding, relative, entry.bytes, entry.is_stored)
