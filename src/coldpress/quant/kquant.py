"""Search for the grid of each block that leaves the least squared error, without any data.

The range of a block is a poor guide to its grid: the outermost weights are rare, and a slightly narrower or wider grid
fits the many others better. As in the k-quants of llama.cpp (``make_qkx2_quants`` and ``make_qx_quants`` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c) several scales near the range's are tried,
the weights rounded to each, the scale refitted to those codes by least squares, and the best kept. What differs: the
zero point is a whole code, as the runtime's kernels want it, where k-quants subtract a free minimum; the candidates
were chosen for what each adds to the others, on normal, heavy-tailed, trained and rotated trained weights; and the grid
of `rtn` competes, so no block comes out worse, and blocks that span a grid already keep it: bit by bit on symmetric
grids and where the scale has the precision of a half, else to the last place.

Errors count plainly unless the importance of the inputs is known: for inputs of equal power the squared error of the
weights is the expected squared error of the output. Weighting by the magnitude of the weights, as k-quants do, leaves
0.6 to 2 percent more of it (root mean square, 4 bits, SmolLM2's weights as they are and rotated).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.quant.grid import (
    TINY,
    Codes,
    Fit,
    Floats,
    Grid,
    TurnedGrids,
    block_range,
    blocks_of,
    quantize,
    round_to_grid,
)
from coldpress.quant.lattice import keeping_lattice
from coldpress.quant.rtn import range_grid

#: bits -> (width of the grid over the width of the block's range, which of its zeros to take)
_CANDIDATES = {
    2: (
        *((width, 0) for width in (0.44, 0.5, 0.58, 0.66, 0.74, 0.84, 0.9)),
        *((width, 1) for width in (0.54, 0.62, 0.7, 0.78, 0.98, 1.1)),
    ),
    3: (
        *((width, 0) for width in (0.64, 0.72, 0.78, 0.82, 0.86, 0.9, 0.94, 1.1, 1.22)),
        *((width, 1) for width in (0.72, 0.8, 0.9)),
    ),
    4: ((0.92, 1), *((width, 0) for width in (0.82, 0.86, 0.9, 0.94, 0.98, 1.02, 1.07, 1.14, 1.24))),
    8: tuple((width, 0) for width in (0.995, 1.0, 1.005, 1.01, 1.015, 1.02, 1.025, 1.03, 1.04, 1.05)),
}
#: those of a quick search; SmolLM2's divergence after GPTQ is 0.098 with none but the range, 0.092 with one, 0.082 with
#: these
_QUICK_CANDIDATES = {**_CANDIDATES, 4: ((0.84, 0), (0.92, 0), (1.0, 0), (1.1, 0))}
#: further candidates where weights differ in importance: it can pay to cut off large ones that count little
_NARROW_CANDIDATES = {
    2: ((0.25, 0), (0.3, 1), (0.35, 0), (0.4, 1)),
    3: ((0.4, 0), (0.54, 0), (0.6, 1), (0.68, 0)),
    4: ((0.55, 0), (0.64, 0), (0.7, 0), (0.76, 0)),
    8: ((0.85, 0), (0.9, 0), (0.95, 0), (0.975, 0)),
}
#: how much more than the mean a weight of a block must count for a quick search to try these
_FAR_MORE = np.float32(16)


def kquant(weight: Floats, grid: Grid, importance: Floats | None = None, *, quick: bool = False) -> Codes:
    """Quantize ``weight [rows, K]`` with the grids of least squared error that a short search finds.

    ``importance [K]``: what an error in each column counts, such as the mean square of that input; none: all alike. In
    this measure no block is worse than with `rtn`. ``quick``: less than half the search, for grids on which something
    else chooses the codes; in this measure they are some percent worse, after GPTQ they are as good.
    """
    tiles = None if importance is None else _tile(importance, weight.shape, grid)
    fit = _quick_fit if quick else _fit
    search = keeping_lattice(weight, grid, lambda columns: fit(_Blocks.of(columns, tiles, grid)))
    return quantize(weight, grid, search)


def quick_grids(turned: Floats, grid: Grid, importance: Floats) -> tuple[TurnedGrids, Floats]:
    """The grids of a quick `kquant` for a weight that is turned, ``[K, rows]``; and what `rtn` misses of it, ``[K,
    rows]``."""
    rows, tiles = turned.shape[1], _tile(importance, turned.shape[::-1], grid)
    scales, zeros = (np.empty((grid.blocks(len(turned)), rows), np.float32) for _ in range(2))
    missed = np.empty((len(scales), grid.block_size, rows), np.float32)
    search = keeping_lattice(turned.T, grid, lambda _: _search_quickly(blocks, best))
    for part, columns in blocks_of(turned, grid):
        blocks = _Blocks.of(columns, np.repeat(tiles[:, part], rows, axis=1), grid)
        best = _ranged(blocks)
        left = blocks.difference(best.scales, blocks.steps).reshape(grid.block_size, -1, rows)
        np.copyto(missed[part], left.transpose(1, 0, 2))
        found = search(columns)
        stored = grid.storable(found.scales, columns)
        is_turned = grid.symmetric & (found.zeros != grid.middle)
        scales[part] = np.where(is_turned, -stored, stored).reshape(-1, rows)
        zeros[part] = grid.middle if grid.symmetric else found.zeros.reshape(-1, rows)
    return TurnedGrids(scales, zeros, grid), missed.reshape(-1, rows)[: len(turned)]


def _tile(importance: Floats, shape: tuple[int, ...], grid: Grid) -> Floats:
    """``importance [K]`` as the blocks of one row, ``[block_size, blocks]``, at most 1."""
    if importance.shape != shape[1:]:
        raise ColdpressError(f"importance of shape {list(importance.shape)} for a weight of shape {list(shape)}")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ColdpressError("importance holds values that are negative or not finite")
    padded = np.zeros(grid.blocks(shape[1]) * grid.block_size, np.float32)
    padded[: shape[1]] = importance / max(float(importance.max()), float(np.finfo(np.float32).tiny))
    return padded.reshape(-1, grid.block_size).T


@dataclass
class _Blocks:
    """Blocks as columns ``[block_size, G]``, their ranges, what their errors count, and room for steps and for
    differences."""

    columns: Floats
    span: tuple[Floats, Floats]
    importance: Floats | None
    grid: Grid
    steps: Floats
    room: Floats

    @classmethod
    def of(cls, columns: Floats, tiles: Floats | None, grid: Grid) -> _Blocks:
        importance = None if tiles is None else np.tile(tiles, columns.shape[1] // tiles.shape[1])
        return cls(columns, block_range(columns), importance, grid, np.empty_like(columns), np.empty_like(columns))

    def some(self, which: NDArray[np.int64]) -> _Blocks:
        """Those of these numbers."""
        importance = None if self.importance is None else self.importance[:, which]
        columns = self.columns[:, which]
        span = self.span[0][which], self.span[1][which]
        return _Blocks(columns, span, importance, self.grid, np.empty_like(columns), np.empty_like(columns))

    def round(self, scales: Floats, zeros: Floats) -> Floats:
        """The steps of the columns on these grids; overwritten by the next call."""
        return round_to_grid(self.columns, self.grid, scales, zeros, self.steps, self.span)

    def dot(self, one: Floats, other: Floats) -> Floats:
        """The inner product of two arrays ``[block_size, G]`` in each block, ``[G]``."""
        product: Floats
        if self.importance is None:
            product = np.einsum("bg,bg->g", one, other)
        else:
            product = np.einsum("bg,bg,bg->g", self.importance, one, other)
        return product

    def difference(self, scales: Floats, steps: Floats) -> Floats:
        """What the grid misses of each column; overwritten by the next call."""
        np.multiply(steps, scales, out=self.room)
        np.subtract(self.columns, self.room, out=self.room)
        return self.room


@dataclass
class _Best:
    """The best grids so far, ``scales`` and ``zeros`` ``[G]``, and how much of the error of zeros they remove.

    For given steps the least-squares scale is <w, steps> / <steps, steps>, and it leaves the error
    <w, w> - <w, steps>^2 / <steps, steps>. The last term is the gain: it ranks the candidates.
    """

    scales: Floats
    zeros: Floats
    gains: Floats

    def some(self, which: NDArray[np.int64]) -> _Best:
        return _Best(self.scales[which], self.zeros[which], self.gains[which])

    def put(self, which: NDArray[np.int64], others: _Best) -> None:
        self.scales[which], self.zeros[which], self.gains[which] = others.scales, others.zeros, others.gains

    def compare_stored(self, blocks: _Blocks, scales: Floats, zeros: Floats) -> None:
        """As `compare`, with scales as the grid stores them: so the gain is what they leave, and no refit has to
        follow."""
        steps = blocks.round(scales, zeros)
        along, power = blocks.dot(blocks.columns, steps), blocks.dot(steps, steps)
        fitted: Floats = blocks.grid.stored(np.divide(along, np.maximum(power, TINY), dtype=np.float32))
        gains = fitted * (2 * along - fitted * power)
        better = (gains > self.gains) & (fitted > 0)
        for own, other in ((self.gains, gains), (self.scales, fitted), (self.zeros, zeros)):
            np.copyto(own, other, where=better)

    def compare(self, blocks: _Blocks, scales: Floats, zeros: Floats) -> None:
        """Take over these grids, with the scale refitted, for the blocks where they are better."""
        steps = blocks.round(scales, zeros)
        along = blocks.dot(blocks.columns, steps)
        fitted = along / np.maximum(blocks.dot(steps, steps), TINY)
        gains = along * fitted
        better = gains > self.gains
        self.gains = np.where(better, gains, self.gains)
        self.scales, self.zeros = np.where(better, fitted, self.scales), np.where(better, zeros, self.zeros)


def _fit(blocks: _Blocks) -> Fit:
    """The better of the searched grid and the range's; then its scale once more to its final steps."""
    range_scales, range_zeros = range_grid(blocks.columns, blocks.grid)
    found = _search(blocks, _Best(range_scales, range_zeros, np.zeros_like(range_scales)))
    found.scales = blocks.grid.stored(found.scales)
    # gains are differences of large numbers; the errors themselves decide between the found grid and the range's
    errors, range_errors = (_errors(blocks, *one) for one in ((found.scales, found.zeros), (range_scales, range_zeros)))
    better = errors < range_errors
    scales, zeros = np.where(better, found.scales, range_scales), np.where(better, found.zeros, range_zeros)
    return _refit(blocks, scales, zeros, np.where(better, errors, range_errors))


def _ranged(blocks: _Blocks) -> _Best:
    """The grid of the range; its steps are those of ``blocks`` then."""
    scales, zeros = range_grid(blocks.columns, blocks.grid)
    steps = blocks.round(scales, zeros)
    return _Best(scales, zeros, scales * (2 * blocks.dot(blocks.columns, steps) - scales * blocks.dot(steps, steps)))


def _search_quickly(blocks: _Blocks, best: _Best) -> Fit:
    """Compare few candidates, and narrower ones where few weights of a block count."""
    for width, choice in _QUICK_CANDIDATES[blocks.grid.bits]:
        best.compare_stored(blocks, *_candidate(blocks.grid, blocks.span, width, choice))
    if blocks.importance is not None:
        uneven = np.flatnonzero(blocks.importance.max(axis=0) > _FAR_MORE * blocks.importance.mean(axis=0))
        if len(uneven):
            some, found = blocks.some(uneven), best.some(uneven)
            for scales, zeros in _narrow(some):
                found.compare_stored(some, scales, zeros)
            best.put(uneven, found)
    return Fit(best.scales, best.zeros, blocks.round(best.scales, best.zeros))


def _quick_fit(blocks: _Blocks) -> Fit:
    return _search_quickly(blocks, _ranged(blocks))


def _errors(blocks: _Blocks, scales: Floats, zeros: Floats) -> Floats:
    missed = blocks.difference(scales, blocks.round(scales, zeros))
    return blocks.dot(missed, missed)


def _search(blocks: _Blocks, best: _Best) -> _Best:
    """Compare all candidates; where importance draws the grid to one side, also the neighbours of the best zero."""
    grid = blocks.grid
    for width, choice in _CANDIDATES[grid.bits]:
        best.compare(blocks, *_candidate(grid, blocks.span, width, choice))
    if blocks.importance is None:
        return best
    for scales, zeros in _narrow(blocks):
        best.compare(blocks, scales, zeros)
    if not grid.symmetric:
        for step in (np.float32(1), np.float32(-1)):
            best.compare(blocks, best.scales, np.clip(best.zeros + step, np.float32(0), np.float32(grid.top)))
    return best


def _narrow(blocks: _Blocks) -> Iterator[tuple[Floats, Floats]]:
    """Narrow candidates."""
    span = blocks.span
    if not blocks.grid.symmetric:
        span = _around_mean(blocks, span)
    for width, choice in _NARROW_CANDIDATES[blocks.grid.bits]:
        yield _candidate(blocks.grid, span, width, choice)


def _around_mean(blocks: _Blocks, span: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """The range of each block, shifted so that the weighted mean of its weights is in the middle."""
    ones = np.broadcast_to(np.float32(1), blocks.columns.shape)
    total: Floats = np.maximum(blocks.dot(ones, ones), TINY)
    mean = blocks.dot(blocks.columns, ones) / total
    half = (span[1] - span[0]) / np.float32(2)
    return mean - half, mean + half


def _candidate(grid: Grid, span: tuple[Floats, Floats], width: float, choice: int) -> tuple[Floats, Floats]:
    """A grid ``width`` times as wide as the range of each block; ``choice`` 1 takes the second best zero.

    The best zero puts what overhangs equally at both ends; on a symmetric grid, the longer end of the steps at
    the weight of largest magnitude.
    """
    low, high = span
    if grid.symmetric:
        scales = np.maximum(np.maximum(-low, high), TINY) * np.float32(width / grid.middle)
        return scales, np.where((-low >= high) != bool(choice), np.float32(grid.middle), np.float32(grid.middle - 1))
    scales = np.maximum(high - low, TINY) * np.float32(width / grid.top)
    exact = np.float32(grid.top / 2) - (low + high) / (2 * scales)
    zeros = np.rint(exact)
    if choice:
        zeros += np.where(exact >= zeros, np.float32(1), np.float32(-1))
    return scales, np.clip(zeros, np.float32(0), np.float32(grid.top))


def _refit(blocks: _Blocks, scales: Floats, zeros: Floats, errors: Floats) -> Fit:
    """Steps on these grids, which leave ``errors``, and the scales that serve the steps best.

    The correction is computed from what the grid misses, so a grid that misses nothing stays as it is to the last bit.
    """
    steps = blocks.round(scales, zeros)
    missed = blocks.difference(scales, steps)
    power: Floats = np.maximum(blocks.dot(steps, steps), TINY)
    fitted = blocks.grid.stored(scales + blocks.dot(missed, steps) / power)
    missed = blocks.difference(fitted, steps)
    return Fit(np.where(blocks.dot(missed, missed) < errors, fitted, scales), zeros, steps)
