"""Reading a Hugging Face checkpoint without loading it: where every tensor lies in the safetensors files.

The format (https://github.com/huggingface/safetensors): eight bytes header length, a JSON header with dtype,
shape and byte range of each tensor, then the bytes. Tensors are handed out as views of the mapped file,
so a row range costs only the pages it touches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError

#: safetensors dtype -> (numpy dtype the bytes are viewed as, bytes an element)
_DTYPES = {
    "F64": ("<f8", 8),
    "F32": ("<f4", 4),
    "F16": ("<f2", 2),
    "BF16": ("<u2", 2),
    "I64": ("<i8", 8),
    "I32": ("<i4", 4),
    "I16": ("<i2", 2),
    "I8": ("|i1", 1),
    "U8": ("|u1", 1),
    "BOOL": ("|b1", 1),
}
_MAX_HEADER_BYTES = 100_000_000
#: lies in the folder but is no part of the checkpoint; see ``packed/embedding.py``
EMBEDDING_CODES = "embedding_codes.safetensors"


@dataclass(frozen=True)
class Span:
    """A tensor, or a strided view of one, inside a file: ``offset`` in bytes, ``strides`` in elements."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @classmethod
    def contiguous(cls, name: str, file: Path, dtype: str, shape: tuple[int, ...], offset: int) -> Span:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return cls(name, str(file), dtype, shape, offset, strides)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Span:
        return cls(**{**data, "shape": tuple(data["shape"]), "strides": tuple(data["strides"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def item_bytes(self) -> int:
        return _DTYPES[self.dtype][1]

    def view(self) -> np.ndarray:
        """The tensor's bytes, mapped, not read; bfloat16 appears as uint16."""
        dtype = np.dtype(_DTYPES[self.dtype][0])
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.ndarray(self.shape, dtype, buffer=_map(self.file), offset=self.offset, strides=strides)

    def cut(self, start: int, stop: int) -> Span:
        """Rows ``start`` to ``stop`` along the first axis, as a span of their own."""
        offset = self.offset + start * self.strides[0] * self.item_bytes
        return replace(self, shape=(stop - start, *self.shape[1:]), offset=offset)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` along the first axis, as float32 (a copy unless stored as such)."""
        return as_float32(self.view()[start:stop], self.dtype)


def _map(file: str) -> np.memmap:
    stat = Path(file).stat()
    return _mapped(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _mapped(file: str, _written: int, _size: int) -> np.memmap:
    return np.memmap(file, mode="r", dtype=np.uint8)


def as_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values as float32; a bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        wide = np.left_shift(values, 16, dtype=np.uint32, casting="unsafe")
        return wide.view(np.float32)
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Checkpoint:
    """The safetensors files of a Hugging Face folder, checked against each other."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if not index.exists():
            return sorted(file for file in self.folder.glob("*.safetensors") if file.name != EMBEDDING_CODES)
        shards = sorted(set(_read_index(index).values()))
        for shard in shards:
            if not (self.folder / shard).exists():
                raise ColdpressError(
                    f"shard '{shard}' of {self.folder} is missing (named in {index.name})",
                    hint="download the missing file, or the whole model, again",
                )
        return [self.folder / shard for shard in shards]

    @cached_property
    def tensors(self) -> dict[str, Span]:
        """Every tensor by its Hugging Face name. Raises ColdpressError for a file that is cut off or no safetensors."""
        if not self.files:
            raise ColdpressError(
                f"no *.safetensors in {self.folder}", hint="save the model with safe_serialization=True"
            )
        found: dict[str, Span] = {}
        for file in self.files:
            found.update(read_header(file))
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            for name, shard in _read_index(index).items():
                if name not in found:
                    raise ColdpressError(f"tensor '{name}' is not in '{shard}', where {index.name} says it is")
        return found

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def _read_index(index: Path) -> dict[str, str]:
    try:
        return json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise ColdpressError(f"{index} is not a safetensors index: {error!r}") from error


def read_header(file: Path) -> dict[str, Span]:
    """The tensors of one safetensors file, from its header alone."""
    size = file.stat().st_size
    length, header = _header(file, size)
    header.pop("__metadata__", None)
    return {name: _span(file, name, entry, start=8 + length, size=size) for name, entry in header.items()}


def read_metadata(file: Path) -> dict[str, str]:
    """The free text that a safetensors file carries beside its tensors."""
    return dict(_header(file, file.stat().st_size)[1].get("__metadata__", {}))


def _header(file: Path, size: int) -> tuple[int, dict[str, Any]]:
    """The length of a file's header and what it says."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise _broken(file, f"its header would be {length} bytes, the file has {size}")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as error:
            raise _broken(file, "its header is not JSON") from error
    return length, header


def _span(file: Path, name: str, entry: Mapping[str, Any], *, start: int, size: int) -> Span:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if dtype not in _DTYPES:
        raise ColdpressError(
            f"tensor '{name}' in {file} has dtype {dtype}, which coldpress does not read",
            hint=f"it reads {', '.join(_DTYPES)}",
        )
    if start + end > size:
        raise _broken(file, f"tensor '{name}' ends at byte {start + end}, the file has {size}")
    if end - begin != math.prod(shape) * _DTYPES[dtype][1]:
        raise _broken(file, f"tensor '{name}' has {end - begin} bytes, its shape {list(shape)} needs another number")
    return Span.contiguous(name, file, dtype, shape, start + begin)


def _broken(file: Path, why: str) -> ColdpressError:
    return ColdpressError(f"{file} is cut off or corrupt: {why}", hint="download or copy the file again")
