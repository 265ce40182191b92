"""One linear layer of a quantized checkpoint, read in chunks of rows: its codes as stored, or its float values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Span
from coldpress.quant.grid import ONNX_BITS, Bytes, Codes, Floats, Grid

_BLOCK_SIZES = (256, 128, 64, 32, 16)
_SCALES = {"F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredRows:
    """Some rows as the file has them: ``codes [rows, K]``, ``scales [rows, groups]``, ``zero_points [rows, groups]``.

    ``zero_points`` is None where all are the middle code.
    """

    codes: Bytes
    scales: Floats
    zero_points: Bytes | None


@dataclass(frozen=True, eq=False)
class PackedLinear(ABC):
    """The weight ``[rows, columns]`` of ``module``, ``bits`` per code, one of the ``scales`` for ``group_size`` columns
    of a row.

    ``column_groups [columns]`` is the group of each column where the columns of a group do not lie together
    (GPTQ's act-order), else None. Nothing is read before it is asked for.
    """

    module: str
    rows: int
    columns: int
    bits: int
    group_size: int
    column_groups: NDArray[np.intp] | None
    scales: Span

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether every zero point is the middle code."""

    @cached_property
    def scale_dtype(self) -> str:
        """The smallest type that holds the scales as they are: the file's, or float16 if wider ones have no more
        digits."""
        if self.scales.dtype in _SCALES:
            return _SCALES[self.scales.dtype]
        values = self.scales.rows(0, self.scales.shape[0])
        with np.errstate(over="ignore"):
            return "float16" if np.array_equal(values.astype(np.float16).astype(np.float32), values) else "float32"

    @abstractmethod
    def stored(self, start: int, stop: int) -> StoredRows:
        """Rows ``start`` to ``stop`` as the file has them."""

    @cached_property
    def grid(self) -> Grid:
        """The grid of ``rows_as_codes``; larger groups are cut into blocks that repeat the group's scale."""
        if self.bits not in ONNX_BITS:
            raise ColdpressError(
                f"'{self.module}' has {self.bits} bits a weight, which no ONNX kernel reads",
                hint="use the Hugging Face folder as it is, or quantize its float source again with 2, 4 or 8 bits",
            )
        if self.column_groups is not None:
            raise ColdpressError(
                f"'{self.module}' is quantized with act-order: the columns that share a scale do not lie together, "
                "and MatMulNBits cannot say that",
                hint="quantize the float source again with desc_act=false or static groups",
            )
        return Grid(self.bits, self._block_size(), self.symmetric)

    def _block_size(self) -> int:
        if self.group_size in _BLOCK_SIZES:
            return self.group_size
        one_group = self.group_size >= self.columns
        length = self.columns if one_group else self.group_size
        fitting = largest_block(length)
        if fitting is None and not one_group:
            raise ColdpressError(
                f"'{self.module}' has groups of {self.group_size} weights, which no ONNX kernel's block size divides",
                hint="quantize the float source again with a group size of 16, 32, 64, 128 or 256",
            )
        return fitting or 32

    def rows_as_codes(self, start: int, stop: int) -> Codes:
        """Rows ``start`` to ``stop`` with exactly the stored codes, scales and zero points, the last block padded.

        Raises ColdpressError where no ``Grid`` can hold them: 3 bits, act-order, odd group sizes.
        """
        grid, found = self.grid, self.stored(start, stop)
        count, blocks = stop - start, grid.blocks(self.columns)
        group_of = np.arange(blocks) * grid.block_size // self.group_size
        zeros = None if found.zero_points is None else found.zero_points[:, group_of]
        codes = np.empty((count, blocks * grid.block_size), np.uint8)
        codes[:, : self.columns] = found.codes
        codes[:, self.columns :] = grid.middle if zeros is None else zeros[:, -1:]
        shape = (count, blocks, grid.block_size)
        return Codes(codes.reshape(shape), found.scales[:, group_of], None if grid.symmetric else zeros, grid)

    def dequantized(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop`` as float32 ``[stop - start, columns]``, whatever their bits and order."""
        found = self.stored(start, stop)
        group_of = self.column_groups
        if group_of is None:
            group_of = np.arange(self.columns) // self.group_size
        middle = np.uint8(1 << (self.bits - 1))
        zeros = middle if found.zero_points is None else found.zero_points[:, group_of]
        values = np.subtract(found.codes, zeros, dtype=np.float32)
        values *= found.scales[:, group_of]
        return values


def largest_block(length: int) -> int | None:
    """The largest block that divides ``length`` columns."""
    return next((size for size in _BLOCK_SIZES if length > 0 and length % size == 0), None)


def groups_out_of_order(column_groups: NDArray[np.int32], group_size: int) -> NDArray[np.intp] | None:
    """``column_groups [K]`` as an index, or None where they only say that neighbouring columns share a group."""
    groups = np.asarray(column_groups, np.intp)
    return None if np.array_equal(groups, np.arange(len(groups)) // group_size) else groups
