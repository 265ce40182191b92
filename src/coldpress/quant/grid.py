"""Weights as small whole numbers on one grid per block: the arrays, and the loop that fills them.

Every value of a block is ``scale * (code - zero_point)``. A weight is ``[rows, K]`` and its blocks run along K; when K
is no multiple of the block size, the last block of a row is filled up with zeros. Zero is on every grid, so this
padding neither widens a block's range nor costs any error, and it dequantizes to exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BITS = (2, 3, 4, 8)
#: those that ONNX Runtime's kernels read
ONNX_BITS = (2, 4, 8)
#: types that scales are stored in -> the bits at the end of a float32 that they do not have
_MISSING_BITS = {"float32": 0, "float16": 13, "bfloat16": 16}
#: what float16 holds with all its bits; the smaller, subnormal numbers have fewer, and some kernels read them as zero
_HALF_RANGE = (np.float32(2.0**-14), np.float32(65504))
#: weights that are worked on at once: few enough to stay in the cache, and enough that two threads, which take turns
#: at the interpreter, seldom wait for each other (with a quarter of this, two threads are hardly faster than one)
_CHUNK_WEIGHTS = 1 << 18
#: rows of weights that are turned, of all blocks that are worked on at once
_TURNED_ROWS = 2048
#: smaller block ranges count as this, so that a block of zeros has a scale that is finite and can be divided by
TINY = np.float32(2.0**-100)
#: larger weights are refused: the sums of their squares would not fit into float32
_HUGE = np.float32(1e16)


@dataclass(frozen=True)
class Grid:
    """The numbers a block may hold: ``bits`` per code, ``block_size`` codes per scale, with or without zero points.

    On a symmetric grid the zero point is the middle code, ``2**(bits - 1)``, and a scale may be negative: only one
    end of the codes reaches the full ``2**(bits - 1)`` steps, and the sign says which end of the weights that is.
    ``scale_dtype``: "float32", "float16" or "bfloat16"; scales are float32 arrays of values that this type holds.
    """

    bits: int
    block_size: int
    symmetric: bool
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ColdpressError(f"a grid has 2, 3, 4 or 8 bits, not {self.bits}")
        if self.block_size not in (16, 32, 64, 128, 256):
            raise ColdpressError(f"a block has 16, 32, 64, 128 or 256 weights, not {self.block_size}")
        if self.scale_dtype not in _MISSING_BITS:
            raise ColdpressError(f"scales are float32, float16 or bfloat16, not '{self.scale_dtype}'")

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 1 << (self.bits - 1)

    def blocks(self, columns: int) -> int:
        """The number of blocks in a row of ``columns`` weights; the last may be padded."""
        return -(-columns // self.block_size)

    def stored(self, scales: Floats) -> Floats:
        """The nearest float32 values with no more digits than ``scale_dtype`` has, whatever its range.

        To nearest, not up: a scale that is rounded up never cuts a range, but its steps are coarser. bfloat16 scales
        rounded up leave `rtn` 0.1 to 0.3 percent more error (root mean square) at 2 and 4 bits and 1 percent more at
        symmetric 8; only at asymmetric 8 bits they leave less, by half a percent.
        """
        missing = _MISSING_BITS[self.scale_dtype]
        if not missing:
            return scales
        bits = np.ascontiguousarray(scales, np.float32).view(np.int32)
        half_to_even = (1 << (missing - 1)) - 1 + (bits >> missing & 1)
        rounded: Floats = (bits + half_to_even & -(1 << missing)).view(np.float32)
        return rounded

    def storable(self, scales: Floats, values: Floats) -> Floats:
        """As `stored`, for blocks ``[block_size, G]`` with these values or steps; ColdpressError for scales beyond
        float16's range.

        Scales below float16's normal numbers become the least of these: such a block is next to zero, and stays so. A
        block of zeros is that whatever its scale.
        """
        found = self.stored(scales)
        if self.scale_dtype != "float16":
            return found
        least, most = _HALF_RANGE
        found = np.where(values.any(axis=0), np.maximum(found, least), np.float32(1))
        if (found > most).any():
            raise ColdpressError(
                f"float16 scales reach to {most:.0f}, and a block of these weights needs {found.max():.2g}",
                hint="store the scales as float32, or as bfloat16",
            )
        return found


@dataclass
class Codes:
    """A quantized weight: ``scales * (codes - zero_points)``.

    ``codes``: uint8 ``[rows, blocks, block_size]``, one code a byte. ``scales``: float32 ``[rows, blocks]``.
    ``zero_points``: uint8 ``[rows, blocks]``, or None where all are the middle code of ``grid``.
    """

    codes: Bytes
    scales: Floats
    zero_points: Bytes | None
    grid: Grid

    def put(self, which: NDArray[np.bool_], others: Codes) -> None:
        """Take over these codes for some rows."""
        self.codes[which], self.scales[which] = others.codes, others.scales
        if self.zero_points is not None and others.zero_points is not None:
            self.zero_points[which] = others.zero_points


@dataclass
class TurnedGrids:
    """The grids of a weight that is turned, ``[K, rows]``: signed ``scales`` and ``zeros``, float32 ``[blocks,
    rows]``."""

    scales: Floats
    zeros: Floats
    grid: Grid

    def codes(self, steps: NDArray[np.int16]) -> Codes:
        """The codes of steps ``[K, rows]``."""
        (columns, rows), size = steps.shape, self.grid.block_size
        whole = np.zeros((len(self.scales), size, rows), np.uint8)
        whole.reshape(-1, rows)[:columns] = steps
        whole += self.zeros.astype(np.uint8)[:, None]
        codes = np.ascontiguousarray(whole.reshape(-1, rows).T).reshape(rows, -1, size)
        zeros = None if self.grid.symmetric else np.ascontiguousarray(self.zeros.T.astype(np.uint8))
        return Codes(codes, np.ascontiguousarray(self.scales.T), zeros, self.grid)


@dataclass
class Fit:
    """The grids found for G blocks: ``scales`` and ``zeros`` float32 ``[G]``, ``steps`` float32 ``[block_size, G]``.

    The value is ``scale * step``, the scale is positive, and a step lies in ``[-zero, top - zero]``. On a symmetric
    grid ``zero`` is the middle code, or ``middle - 1``, which stands for a negative scale.
    """

    scales: Floats
    zeros: Floats
    steps: Floats


#: blocks as columns ``[block_size, G]`` -> their grids; reductions over the first axis run at vector speed
Fitter = Callable[[Floats], Fit]


def quantize(weight: Floats, grid: Grid, fit: Fitter) -> Codes:
    """Quantize ``weight [rows, K]`` with the grids that ``fit`` finds, in chunks of rows that fit into the cache.

    A weight in another float type is converted chunk by chunk, so that no float32 copy of it exists. Scales come out
    as ``grid.scale_dtype`` holds them, with codes for these; ColdpressError where they are beyond float16's range.
    """
    if weight.ndim != 2 or weight.shape[1] == 0:
        raise ColdpressError(f"a weight to quantize has the shape [rows, columns], not {list(weight.shape)}")
    rows, blocks = weight.shape[0], grid.blocks(weight.shape[1])
    codes = np.empty((rows * blocks, grid.block_size), np.uint8)
    scales = np.empty(rows * blocks, np.float32)
    zero_points = None if grid.symmetric else np.empty(rows * blocks, np.uint8)
    for part, columns in _chunks(weight, grid):
        found = _store(fit(columns), columns, grid)
        scales[part] = _write_codes(found, grid, codes[part])
        if zero_points is not None:
            zero_points[part] = found.zeros
    zeros = None if zero_points is None else zero_points.reshape(rows, blocks)
    return Codes(codes.reshape(rows, blocks, grid.block_size), scales.reshape(rows, blocks), zeros, grid)


def blocks_of(turned: Floats, grid: Grid) -> Iterator[tuple[slice, Floats]]:
    """Runs of blocks (their place among all) of a weight that is turned, ``[K, rows]``, and their values ``[block_size,
    blocks * rows]``.

    The last block is filled up with zeros. There are several at once where rows are few, and else a copy is seldom
    needed.
    """
    (columns, rows), size = turned.shape, grid.block_size
    step = max(1, _TURNED_ROWS // max(rows, 1))
    for start in range(0, grid.blocks(columns), step):
        own = turned[start * size : (start + step) * size].astype(np.float32, copy=False)
        missing = -len(own) % size
        whole = np.pad(own, ((0, missing), (0, 0))) if missing else own
        count = len(whole) // size
        values = whole.reshape(count, size, rows).transpose(1, 0, 2).reshape(size, count * rows)
        yield slice(start, start + count), values


def round_to_grid(
    columns: Floats, grid: Grid, scales: Floats, zeros: Floats, out: Floats, span: tuple[Floats, Floats] | None = None
) -> Floats:
    """The nearest steps of ``columns [block_size, G]`` on given grids, in ``out`` of the same shape.

    ``span``: the `block_range` of the columns, if it is known: where no block reaches beyond its grid, there is nothing
    to clip.
    """
    steps_per_unit, least, most = np.reciprocal(scales), -zeros, np.float32(grid.top) - zeros
    np.multiply(columns, steps_per_unit, out=out)
    np.rint(out, out=out)
    if span is None or (np.rint(span[0] * steps_per_unit) < least).any():
        np.maximum(out, least, out=out)
    if span is None or (np.rint(span[1] * steps_per_unit) > most).any():
        np.minimum(out, most, out=out)
    return out


def _store(found: Fit, columns: Floats, grid: Grid) -> Fit:
    """The fit with scales as the grid stores them; where that changes them, with steps rounded again.

    Scales below float16's normal numbers become the least of these: such a block is next to zero, and stays so.
    """
    scales = grid.storable(found.scales, found.steps)
    moved = scales != found.scales
    if moved.any():
        again = round_to_grid(columns, grid, scales, found.zeros, np.empty_like(columns))
        np.copyto(found.steps, again, where=moved)
    return Fit(scales, found.zeros, found.steps)


def _chunks(weight: Floats, grid: Grid) -> Iterator[tuple[slice, Floats]]:
    """Runs of blocks (their place among all blocks of the weight) and their values ``[block_size, G]``."""
    rows, columns = weight.shape
    blocks = grid.blocks(columns)
    step = min(max(1, _CHUNK_WEIGHTS // (blocks * grid.block_size)), max(rows, 1))
    padded = np.zeros((step, blocks * grid.block_size), np.float32)
    turned = np.empty((grid.block_size, step * blocks), np.float32)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        whole = weight[row : row + count]
        if columns % grid.block_size:
            padded[:count, :columns] = whole
            whole = padded[:count]
        values = turned[:, : count * blocks]
        np.copyto(values, whole.reshape(-1, grid.block_size).T)
        yield slice(row * blocks, (row + count) * blocks), values


def _write_codes(found: Fit, grid: Grid, codes: Bytes) -> Floats:
    """Put the codes of a fit into ``codes [G, block_size]``; give back its scales with their signs."""
    steps, scales = found.steps, found.scales
    if grid.symmetric:
        signs = np.where(found.zeros == grid.middle, np.float32(1), np.float32(-1))
        np.multiply(steps, signs, out=steps)
        np.add(steps, np.float32(grid.middle), out=steps)
        scales = scales * signs
    else:
        np.add(steps, found.zeros, out=steps)
    # to bytes first, then turned: four times less to move through the slow strided copy
    np.copyto(codes, steps.astype(np.uint8).T)
    return scales


def block_range(columns: Floats) -> tuple[Floats, Floats]:
    """The least and the greatest value of each block ``[block_size, G]``, zero always between them."""
    low = np.minimum(np.minimum.reduce(columns, axis=0), np.float32(0))
    high = np.maximum(np.maximum.reduce(columns, axis=0), np.float32(0))
    if not ((low > -_HUGE) & (high < _HUGE)).all():
        raise _damaged()
    return low, high


def check_weight(weight: Floats) -> None:
    """Raise ColdpressError for values that no grid can hold."""
    if not (weight.min(initial=0) > -_HUGE and weight.max(initial=0) < _HUGE):
        raise _damaged()


def _damaged() -> ColdpressError:
    return ColdpressError(
        "a weight to quantize holds values that are not finite, or above 1e16",
        hint="the checkpoint is damaged: download or save it again",
    )


def dequantize(codes: Codes, columns: int) -> Floats:
    """The values ``[rows, columns]`` that the codes stand for, without the padding."""
    zeros = codes.zero_points
    values = codes.codes.astype(np.float32)
    values -= np.float32(codes.grid.middle) if zeros is None else zeros[..., None].astype(np.float32)
    values *= codes.scales[..., None]
    return values.reshape(len(values), values.shape[1] * values.shape[2])[:, :columns]


def squared_error(weight: Floats, codes: Codes, importance: Floats | None = None) -> float:
    """The sum of squared differences between ``weight [rows, K]`` and its codes, weighted by ``importance [K]``."""
    per_column = np.ones(weight.shape[1]) if importance is None else importance.astype(np.float64)
    total, step = 0.0, max(1, _CHUNK_WEIGHTS // weight.shape[1])
    for row in range(0, len(weight), step):
        part = slice(row, row + step)
        zero_points = None if codes.zero_points is None else codes.zero_points[part]
        values = dequantize(Codes(codes.codes[part], codes.scales[part], zero_points, codes.grid), weight.shape[1])
        missed = np.subtract(weight[part], values, out=values)
        total += float(np.einsum("rk,rk->k", missed, missed) @ per_column)
    return total


def check_gram(shape: Sequence[int], gram: Floats | torch.Tensor) -> None:
    """Raise ColdpressError for a Gram matrix that does not fit a weight of ``shape [rows, K]``, or that no inputs
    have."""
    if len(shape) != 2 or not shape[1] or tuple(gram.shape) != (shape[1], shape[1]):
        raise ColdpressError(f"a Gram matrix of shape {list(gram.shape)} for a weight of shape {list(shape)}")
    if not (math.isfinite(float(gram.min())) and math.isfinite(float(gram.max()))):
        raise ColdpressError(
            "the calibration inputs of a layer are not finite: its Gram matrix holds NaN or Inf",
            hint="check the model in float32",
        )
    if float(gram.diagonal().min()) < 0:
        raise ColdpressError("a Gram matrix has negative values on its diagonal, where sums of squares stand")


def output_errors(weight: Floats, codes: Codes, gram: Floats) -> Floats:
    """What codes of ``weight [rows, K]`` miss of each output, squared and summed over the tokens: ``[rows]``.

    ``gram [K, K]`` is ``X.T @ X`` of the inputs ``X [tokens, K]``; for the missed ``d`` of a row this is ``d gram d``.
    """
    missed = weight - dequantize(codes, weight.shape[1])
    errors: Floats = np.einsum("rk,rk->r", missed @ gram, missed)
    return errors
