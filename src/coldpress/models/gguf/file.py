"""Reading a GGUF file: its metadata, its table of tensors, and the values of a tensor row by row.

The layout is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. The reader in
the ``gguf`` package makes several array objects for every string of the vocabulary (9 s and 700 MB for Gemma's), so
the header is read here in one sweep; unpacking the number formats is left to that package.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError

_MAGIC = b"GGUF"
_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_DEFAULT_ALIGNMENT = 32

#: where the values of a number format lie: two models on one lattice quantize alike
LATTICES = {
    "Q4_0": "4 bits, symmetric, blocks of 32",
    "Q4_1": "4 bits, asymmetric, blocks of 32",
    "Q5_0": "5 bits, symmetric, blocks of 32",
    "Q5_1": "5 bits, asymmetric, blocks of 32",
    "Q8_0": "8 bits, symmetric, blocks of 32",
    "Q2_K": "2 bits, asymmetric, blocks of 16",
    "Q3_K": "3 bits, symmetric, blocks of 16",
    "Q4_K": "4 bits, asymmetric, blocks of 32",
    "Q5_K": "5 bits, asymmetric, blocks of 32",
    "Q6_K": "6 bits, symmetric, blocks of 16",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor in a GGUF file.

    ``shape`` is in PyTorch's order, ``[out, in]``. ``kind`` is the name of the number format (``Q4_1``). The data
    are ``rows`` rows of ``row_bytes`` bytes and begin at byte ``offset`` of the file; a vector of plain floats
    counts as one row for each element, so that it can be cut and reordered as a matrix is.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    rows: int
    row_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file. Metadata arrays of numbers are numpy arrays, of strings lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value ``<architecture>.<key>``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def values(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows ``start`` to ``stop`` of a tensor, unpacked: float32 ``[rows, columns]``."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        return dequantize(self.raw(tensor, start, stop), GGMLQuantizationType[tensor.kind])

    def raw(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows ``start`` to ``stop`` of a tensor as stored: uint8 ``[rows, row_bytes]``."""
        rows = (tensor.rows if stop is None else min(stop, tensor.rows)) - start
        offset = tensor.offset + start * tensor.row_bytes
        flat = np.fromfile(self.path, np.uint8, rows * tensor.row_bytes, offset=offset)
        return flat.reshape(rows, tensor.row_bytes)

    def kinds(self) -> dict[str, int]:
        """How many tensors are stored in each number format, most frequent first."""
        return dict(Counter(tensor.kind for tensor in self.tensors.values()).most_common())

    def main_kind(self) -> str:
        """The number format that holds most of the matrices; embeddings do not count, they are often kept finer."""
        votes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if len(tensor.shape) > 1 and tensor.name.startswith("blk."):
                votes[tensor.kind] += int(np.prod(tensor.shape))
        return votes.most_common(1)[0][0] if votes else next(iter(self.kinds()), "F32")

    @property
    def lattice(self) -> str:
        """The grid that most of its weights lie on, in words."""
        return LATTICES.get(self.main_kind(), self.main_kind())


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file and check that the data of every tensor lie inside the file.

    ColdpressError when it is no GGUF file, a part of a split one, cut short, or uses a number format that the
    installed ``gguf`` package cannot unpack.
    """
    if find_spec("gguf") is None:
        raise ColdpressError("reading GGUF files needs the package gguf", hint="pip install 'coldpress[gguf]'")
    with path.open("rb") as stream:
        start = stream.read(len(_MAGIC))
        if start != _MAGIC:
            raise ColdpressError(f"{path} is not a GGUF file: it starts with {start!r}", hint=_not_gguf(path))
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            try:
                file = _Header(buffer, path).read()
            except (struct.error, _PastEnd):
                raise ColdpressError(
                    f"{path} is cut short: it ends inside its header, at byte {len(buffer)}", hint="download it again"
                ) from None
    _check_complete(file)
    return file


class _PastEnd(Exception):
    """A length in the header points past the end of the file."""


class _Header:
    """A cursor over the bytes of a header."""

    def __init__(self, buffer: mmap.mmap, path: Path):
        self.buffer, self.path, self.at = buffer, path, len(_MAGIC)

    def read(self) -> GgufFile:
        version, tensor_count, key_count = self.take("<IQQ")
        if version not in (2, 3):
            raise ColdpressError(f"{self.path}: GGUF version {version} is not supported", hint="known: 2, 3")
        metadata = {self.string(): self.value(*self.take("<I")) for _ in range(key_count)}
        if (parts := metadata.get("split.count", 0)) > 1:
            raise ColdpressError(
                f"{self.path} is one of {parts} parts of a split GGUF file",
                hint="join them: llama-gguf-split --merge FIRST_PART OUTPUT",
            )
        table = [self.tensor() for _ in range(tensor_count)]
        alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        data_start = -(-self.at // alignment) * alignment
        return GgufFile(self.path, metadata, {row[0]: _tensor(self.path, data_start, *row) for row in table})

    def take(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(layout, self.buffer, self.at)
        self.at += struct.calcsize(layout)
        return found

    def skip(self, length: int) -> int:
        """Move on by ``length`` bytes and return where they began."""
        start = self.at
        self.at += length
        if self.at > len(self.buffer):
            raise _PastEnd
        return start

    def string(self) -> str:
        (length,) = self.take("<Q")
        start = self.skip(length)
        return self.buffer[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(*self.take("<IQ"))
        number = self.array(kind, 1)[0]
        # 9.999999747378752e-06 is what float32 made of 1e-05: the shortest decimal is what its author wrote
        return float(str(number)) if kind == _FLOAT32 else number.item()

    def array(self, kind: int, count: int) -> Any:
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise ColdpressError(f"{self.path}: unknown type {kind} of a metadata value", hint="is the file damaged?")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.buffer, dtype, count, self.skip(dtype.itemsize * count)).copy()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        (rank,) = self.take("<I")
        shape = self.take(f"<{rank}Q")[::-1]
        kind, offset = self.take("<IQ")
        return name, shape, kind, offset


def _tensor(path: Path, data_start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
    """A row of the table, with its sizes worked out."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        quantization = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[quantization]
    except (ValueError, KeyError):
        raise _unknown_kind(path, name, str(kind)) from None
    columns = shape[-1] if len(shape) > 1 or block > 1 else 1
    rows = int(np.prod(shape)) // columns if columns else 0
    if columns % block:
        raise ColdpressError(f"{path}: rows of tensor '{name}' are not whole blocks of {quantization.name}: {shape}")
    return Tensor(name, shape, quantization.name, data_start + offset, rows, columns // block * block_bytes)


def _check_complete(file: GgufFile) -> None:
    size_bytes = file.path.stat().st_size
    seen: set[str] = set()
    for tensor in file.tensors.values():
        end = tensor.offset + tensor.size_bytes
        if end > size_bytes:
            raise ColdpressError(
                f"{file.path} is cut short: the data of tensor '{tensor.name}' end at byte {end}, "
                f"the file has {size_bytes}",
                hint="download it again",
            )
        if tensor.kind not in seen:
            seen.add(tensor.kind)
            _check_unpacks(file, tensor)


def _check_unpacks(file: GgufFile, tensor: Tensor) -> None:
    try:
        file.values(tensor, 0, min(1, tensor.rows))
    except NotImplementedError:
        raise _unknown_kind(file.path, tensor.name, tensor.kind) from None


def _unknown_kind(path: Path, name: str, kind: str) -> ColdpressError:
    return ColdpressError(
        f"{path}: tensor '{name}' has the quantization type {kind}, which cannot be unpacked",
        hint="pip install --upgrade gguf, or use a file with a common type such as Q4_K or Q8_0",
    )


def _not_gguf(path: Path) -> str:
    with path.open("rb") as stream:
        if stream.read(64).startswith(b"version https://git-lfs"):
            return "it is a Git LFS pointer: fetch the file itself with git lfs pull"
    return "is it the right file, and did its download finish?"
