"""The AWQ format of AutoAWQ (version "gemm"): writing and reading 4-bit checkpoints.

A module with K inputs and N outputs has ``qweight`` int32 ``[K, N / 8]``, ``qzeros`` int32 ``[groups, N / 8]`` and
``scales [groups, N]``, all along N; a word holds the rows 0, 2, 4, 6, 1, 3, 5, 7 of its eight, the first lowest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Span, as_float32
from coldpress.models.packed.compressed_tensors import stored_scales, unpadded
from coldpress.models.packed.linear import PackedLinear, StoredRows
from coldpress.models.packed.words import Words, pack_words, unpack_words
from coldpress.quant.grid import Bytes, Codes, Grid

METHOD = "awq"
BITS = 4
PARTS = ("qweight", "qzeros", "scales")
_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_PLACE = np.argsort(_ORDER)


def tensors_of(module: str, codes: Codes, columns: int) -> dict[str, NDArray[Any]]:
    """The tensors of one linear layer with ``columns`` inputs; a symmetric grid's zero points are written out.

    Raises ColdpressError for other than 4 bits, or where N is no multiple of 8.
    """
    flat = unpadded(module, codes, columns, METHOD)
    if codes.grid.bits != BITS or len(flat) % 8:
        raise ColdpressError(
            f"'{module}' has {codes.grid.bits} bits and {len(flat)} outputs; AWQ holds 4 bits and multiples of 8",
            hint="write compressed-tensors",
        )
    zeros = np.full(codes.scales.shape, codes.grid.middle, np.uint8)
    if codes.zero_points is not None:
        zeros = codes.zero_points
    return {
        f"{module}.qweight": _pack(flat.T),
        f"{module}.qzeros": _pack(zeros.T),
        f"{module}.scales": np.ascontiguousarray(stored_scales(module, codes, "float16").T),
    }


def config_of(grids: Mapping[str, Grid], ignore: Sequence[str] = ()) -> dict[str, Any]:
    """The ``quantization_config`` for config.json; ColdpressError where the modules do not share one group size."""
    sizes = {grid.block_size for grid in grids.values()}
    if len(sizes) != 1 or {grid.bits for grid in grids.values()} != {BITS}:
        raise ColdpressError(
            "AWQ has 4 bits and one group size for the whole model; these modules have "
            + ", ".join(sorted({f"{grid.bits} bits in groups of {grid.block_size}" for grid in grids.values()})),
            hint="write compressed-tensors",
        )
    return {
        "quant_method": METHOD,
        "version": "gemm",
        "bits": BITS,
        "group_size": sizes.pop(),
        "zero_point": True,
        "modules_to_not_convert": list(ignore) or None,
    }


def _pack(lines: Bytes) -> Words:
    """Codes ``[lines, N]`` -> words ``[lines, N / 8]``."""
    ordered = lines.reshape(len(lines), -1, 8)[..., _ORDER]
    return pack_words(ordered.reshape(lines.shape), BITS)


def _unpack(words: Words, start: int, stop: int) -> Bytes:
    """Columns ``start`` to ``stop`` of the codes in words ``[lines, N / 8]``, as rows ``[stop - start, lines]``."""
    first = start // 8
    part = words[:, first : -(-stop // 8)]
    codes = unpack_words(part, BITS, part.shape[1] * 8).reshape(len(part), -1, 8)[..., _PLACE]
    return np.ascontiguousarray(codes.reshape(len(part), -1).T[start - first * 8 : stop - first * 8])


@dataclass(frozen=True, eq=False)
class AwqLinear(PackedLinear):
    """A linear layer of an AWQ checkpoint."""

    words: Span
    zeros: Span

    @cached_property
    def symmetric(self) -> bool:
        """Whether every stored zero point is the middle code."""
        return bool((_unpack(self.zeros.view(), 0, self.rows) == 1 << (BITS - 1)).all())

    def stored(self, start: int, stop: int) -> StoredRows:
        scales = as_float32(np.ascontiguousarray(self.scales.view()[:, start:stop].T), self.scales.dtype)
        zeros = _unpack(self.zeros.view(), start, stop)
        return StoredRows(_unpack(self.words.view(), start, stop), scales, zeros)


def linears_in(tensors: Mapping[str, Span], config: Mapping[str, Any]) -> dict[str, PackedLinear]:
    """The quantized linear layers among ``tensors``, which ``config`` (the ``quantization_config``) describes."""
    version, bits = str(config.get("version") or config.get("format") or "gemm").lower(), config.get("bits", BITS)
    if version != "gemm" or bits != BITS:
        raise ColdpressError(
            f"this AWQ checkpoint is version '{version}' with {bits} bits; coldpress reads 'gemm' with {BITS} bits",
            hint="start from the unquantized model",
        )
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return {module: _linear(module, tensors, int(config.get("group_size", 128))) for module in modules}


def _linear(module: str, tensors: Mapping[str, Span], group_size: int) -> AwqLinear:
    try:
        words, zeros, scales = (tensors[f"{module}.{part}"] for part in PARTS)
    except KeyError as error:
        raise ColdpressError(f"tensor {error} is missing; '{module}' has a qweight") from error
    columns, rows = words.shape[0], words.shape[1] * 8
    group_size = columns if group_size < 1 else group_size
    groups = -(-columns // group_size)
    for span, shape in ((zeros, (groups, rows // 8)), (scales, (groups, rows))):
        if span.shape != shape:
            raise ColdpressError(f"'{span.name}' is {list(span.shape)}; groups of {group_size} make it {list(shape)}")
    return AwqLinear(module, rows, columns, BITS, group_size, None, scales, words, zeros)
