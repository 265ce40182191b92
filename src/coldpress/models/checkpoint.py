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
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.weight_files import WeightFiles, weight_files

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
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER_BYTES = 100_000_000
_COMPARED_BYTES = 1 << 24


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

    @property
    def bytes(self) -> int:
        """The size of its values, wherever they lie."""
        return math.prod(self.shape) * self.item_bytes

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
    def _found(self) -> WeightFiles:
        return weight_files(self.folder)

    @property
    def files(self) -> list[Path]:
        """The files that are read, in the order of transformers."""
        return self._found.files

    @property
    def remarks(self) -> list[str]:
        """What is to be said of other weights in the folder."""
        return self._found.remarks

    @cached_property
    def tensors(self) -> dict[str, Span]:
        """Every tensor by its Hugging Face name.

        Raises ColdpressError for a file that is cut off or no safetensors, and for files that disagree with each other
        or with their index.
        """
        found: dict[str, Span] = {}
        for file in self.files:
            for name, span in read_header(file).items():
                if name in found and not _is_same(found[name], span):
                    raise ColdpressError(
                        f"tensor '{name}' is in {Path(found[name].file).name} and in {file.name} of {self.folder}, "
                        "with other values",
                        hint=(
                            "files of two saves lie in this folder: save or download the model again, into an empty one"
                        ),
                    )
                found[name] = span
        for name, home in self._found.homes.items():
            if name not in found:
                raise ColdpressError(
                    f"tensor '{name}' is not in '{home}', where the index of {self.folder} says it is",
                    hint="download index and files again: they are not of one save",
                )
        return found

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def check(folder: Path) -> None:
    """Raise ColdpressError for weights that cannot be right: broken files, or NaN or infinity in a vector (a norm, a
    bias).

    Matrices are looked at when they are read anyway, as that takes long.
    """
    for name, span in Checkpoint(folder).tensors.items():
        if len(span.shape) < 2 and span.dtype in _FLOATS and span.bytes <= _COMPARED_BYTES:
            values = as_float32(span.view(), span.dtype).reshape(-1)
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                raise ColdpressError(
                    f"tensor '{name}' in {span.file} holds {values[bad[0]]} at {bad[0]}",
                    hint="the checkpoint is damaged or its training diverged: get another copy",
                )


def _is_same(one: Span, other: Span) -> bool:
    """Whether two tensors have the same bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    left, right = (span.view().reshape(-1).view(np.uint8) for span in (one, other))
    step = _COMPARED_BYTES
    return all(np.array_equal(left[at : at + step], right[at : at + step]) for at in range(0, len(left), step))


def read_header(file: Path) -> dict[str, Span]:
    """The tensors of one safetensors file, from its header alone."""
    size = file.stat().st_size
    length, header = _header(file, size)
    header.pop("__metadata__", None)
    spans = {name: _span(file, name, entry, start=8 + length, size=size) for name, entry in header.items()}
    _require_all_bytes(file, list(spans.values()), 8 + length, size)
    return spans


def _require_all_bytes(file: Path, spans: list[Span], start: int, size: int) -> None:
    """Tensors lie one after the other, from the header's end to the file's, as the format wants it."""
    end, before = start, "the header"
    for span in sorted(spans, key=lambda span: (span.offset, span.bytes)):
        if span.offset != end:
            how = "overlaps" if span.offset < end else "leaves a hole after"
            raise _broken(file, f"tensor '{span.name}' {how} {before}")
        end, before = span.offset + span.bytes, f"tensor '{span.name}'"
    if end != size:
        raise _broken(file, f"{size - end} bytes follow {before}, which is the last")


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
            header: dict[str, Any] = json.loads(stream.read(length), object_pairs_hook=partial(_no_twins, file))
        except ValueError as error:
            raise _broken(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(file, "its header is no JSON object")
    return length, header


def _no_twins(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name that comes twice would hide one of two tensors."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _broken(file, f"its header names '{next(name for name in names if names.count(name) > 1)}' twice")
    return found


def _span(file: Path, name: str, entry: Mapping[str, Any], *, start: int, size: int) -> Span:
    try:
        begin, end = map(int, entry["data_offsets"])
        shape, dtype = tuple(map(int, entry["shape"])), str(entry["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(file, f"its header does not say where tensor '{name}' lies and what it is") from error
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
