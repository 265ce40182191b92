"""Where every weight of an ONNX model will lie in its data file, and what it is made from.

A graph is captured without weights in one process; another process, which knows nothing of ONNX, then fills the
data file. The layout is all that passes between them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coldpress.graphs.kernels import Encoding
from coldpress.models.checkpoint import Span
from coldpress.models.external_data import aligned
from coldpress.models.packed.spans import PackedSpan, span_from_json
from coldpress.quant.grid import Grid

_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


@dataclass(frozen=True)
class Place:
    """A byte range of the data file."""

    offset: int
    bytes: int


@dataclass
class Plain:
    """A tensor that is stored as numbers: the sources one above the other, cast, transposed if need be."""

    name: str
    sources: list[Span]
    shape: list[int]
    dtype: str
    place: Place
    transposed: bool = False


@dataclass
class Quantized:
    """A linear layer's or embedding's weight ``[rows, columns]``: the sources one above the other."""

    name: str
    role: str  # "linear", "head" or "embedding"
    sources: list[Span]
    rows: int
    columns: int
    encoding: Encoding
    scale_dtype: str
    codes: Place
    scales: Place
    zero_points: Place | None

    @property
    def is_stored(self) -> bool:
        """Whether the sources hold codes already, which are taken as they are."""
        return all(isinstance(source, PackedSpan) for source in self.sources)

    @property
    def grid(self) -> Grid:
        """What the weights are rounded to."""
        return Grid(self.encoding.bits, self.encoding.block_size, self.encoding.symmetric, self.scale_dtype)

    @property
    def blocks(self) -> int:
        return math.ceil(self.columns / self.encoding.block_size)

    @property
    def bytes(self) -> int:
        return self.codes.bytes + self.scales.bytes + (self.zero_points.bytes if self.zero_points else 0)


@dataclass
class Layout:
    """One data file: its tensors in the order of their places, and its length."""

    graph: str = "model.onnx"
    plain: list[Plain] = field(default_factory=list)
    quantized: list[Quantized] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def data(self) -> str:
        return f"{self.graph}.data"

    def reserve(self, size: int) -> Place:
        """The next free byte range of ``size`` bytes, aligned."""
        offset = aligned(self.size_bytes, size)
        self.size_bytes = offset + size
        return Place(offset, size)

    def add_plain(
        self, name: str, sources: list[Span], shape: list[int], dtype: str, transposed: bool = False
    ) -> Plain:
        place = self.reserve(math.prod(shape) * _FLOAT_BYTES[dtype])
        self.plain.append(Plain(name, sources, shape, dtype, place, transposed))
        return self.plain[-1]

    def add_quantized(self, name: str, role: str, sources: list[Span], encoding: Encoding, dtype: str) -> Quantized:
        rows, columns = sum(source.shape[0] for source in sources), sources[0].shape[1]
        blocks = math.ceil(columns / encoding.block_size)
        codes = self.reserve(rows * blocks * encoding.block_size * encoding.bits // 8)
        scales = self.reserve(rows * blocks * _FLOAT_BYTES[dtype])
        zeros = None if encoding.symmetric else self.reserve(rows * math.ceil(blocks * encoding.bits / 8))
        entry = Quantized(name, role, sources, rows, columns, encoding, dtype, codes, scales, zeros)
        self.quantized.append(entry)
        return entry


def write_layouts(layouts: list[Layout], file: Path) -> None:
    file.write_text(json.dumps([asdict(layout) for layout in layouts]), encoding="utf-8")


def read_layouts(file: Path) -> list[Layout]:
    return [_layout(data) for data in json.loads(file.read_text(encoding="utf-8"))]


def _layout(data: dict[str, Any]) -> Layout:
    plain = [Plain(**{**entry, "sources": _spans(entry), "place": Place(**entry["place"])}) for entry in data["plain"]]
    quantized = [
        Quantized(
            **{
                **entry,
                "sources": _spans(entry),
                "encoding": Encoding(**entry["encoding"]),
                "codes": Place(**entry["codes"]),
                "scales": Place(**entry["scales"]),
                "zero_points": Place(**entry["zero_points"]) if entry["zero_points"] else None,
            }
        )
        for entry in data["quantized"]
    ]
    return Layout(data["graph"], plain, quantized, data["size_bytes"])


def _spans(entry: dict[str, Any]) -> list[Span]:
    return [span_from_json(source) for source in entry["sources"]]
