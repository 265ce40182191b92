"""Clipping search: each block's range is narrowed as far as the error of the layer's output gets smaller.

The error is measured with the block's own part of the Gram matrix, ``d @ gram[block, block] @ d``: correlations of
inputs within a block count, those between blocks do not. So the blocks are independent, and the search costs about as
much as ten roundings, where measuring with the whole Gram matrix would cost a layer's output for every candidate.
For each range the scale is then fitted once more to the codes, in the same measure; the range of `rtn` competes, so no
block comes out worse in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coldpress.quant.grid import TINY, Codes, Fit, Floats, Grid, check_gram, quantize, round_to_grid
from coldpress.quant.rtn import range_grid

#: widths of the ranges over the range of the block; at few bits more is gained by clipping more
_WIDTHS = {
    2: (1.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    3: (1.12, 0.96, 0.9, 0.84, 0.78, 0.72, 0.64, 0.54),
    4: (1.06, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.6),
    8: (1.02, 0.99, 0.97, 0.95, 0.9),
}


def clip(weight: Floats, gram: Floats, grid: Grid) -> Codes:
    """Quantize ``weight [rows, K]`` with the range for each block that serves inputs with ``gram [K, K]`` best."""
    check_gram(weight.shape, gram)
    tiles = gram_blocks(gram, grid)
    tiles /= max(float(np.abs(tiles).max()), float(np.finfo(np.float32).tiny))
    return quantize(weight, grid, lambda values: _fit(_Blocks(values, tiles, grid)))


def gram_blocks(gram: Floats, grid: Grid) -> Floats:
    """The parts of ``gram [K, K]`` on its diagonal, ``[blocks, block_size, block_size]``, zero in the padding."""
    size, count = grid.block_size, grid.blocks(len(gram))
    tiles = np.zeros((count, size, size), np.float32)
    for block in range(count):
        part = gram[block * size : (block + 1) * size, block * size : (block + 1) * size]
        tiles[block, : len(part), : len(part)] = part
    return tiles


@dataclass
class _Blocks:
    """Blocks as columns ``[block_size, G]``; block g of a row has the Gram matrix ``tiles[g % blocks]``."""

    columns: Floats
    tiles: Floats
    grid: Grid

    def weigh(self, values: Floats) -> Floats:
        """``gram @ values`` for each block, ``[block_size, G]``."""
        blocks, size = len(self.tiles), self.grid.block_size
        turned = np.ascontiguousarray(values.reshape(size, -1, blocks).transpose(2, 0, 1))
        return np.matmul(self.tiles, turned).transpose(1, 2, 0).reshape(size, -1)


def _dot(one: Floats, other: Floats) -> Floats:
    product: Floats = np.einsum("bg,bg->g", one, other)
    return product


def _fit(blocks: _Blocks) -> Fit:
    """The best of `rtn`'s grid and of the candidates."""
    scales, zeros = range_grid(blocks.columns, blocks.grid)
    best = Fit(scales, zeros, _round(blocks, scales, zeros))
    missed = blocks.columns - scales * best.steps
    errors = _dot(missed, blocks.weigh(missed))
    for width in _WIDTHS[blocks.grid.bits]:
        found = _refit(blocks, *_narrow(blocks, width))
        missed = blocks.columns - found.scales * found.steps
        found_errors = _dot(missed, blocks.weigh(missed))
        better = found_errors < errors
        errors = np.where(better, found_errors, errors)
        best.scales, best.zeros = (
            np.where(better, found.scales, best.scales),
            np.where(better, found.zeros, best.zeros),
        )
        np.copyto(best.steps, found.steps, where=better)
    return best


def _narrow(blocks: _Blocks, width: float) -> tuple[Floats, Floats]:
    """The grid that spans ``width`` times the range of each block."""
    return range_grid(blocks.columns * np.float32(width), blocks.grid)


def _round(blocks: _Blocks, scales: Floats, zeros: Floats) -> Floats:
    return round_to_grid(blocks.columns, blocks.grid, scales, zeros, np.empty_like(blocks.columns))


def _refit(blocks: _Blocks, scales: Floats, zeros: Floats) -> Fit:
    """Steps on these grids, and the scale of least squares for them in the measure of the block's inputs."""
    steps = _round(blocks, scales, zeros)
    weighed = blocks.weigh(steps)
    power = _dot(steps, weighed)
    divisor: Floats = np.maximum(power, TINY)
    fitted = blocks.grid.stored(_dot(blocks.columns, weighed) / divisor)
    return Fit(np.where((power > TINY) & (fitted > 0), fitted, scales), zeros, steps)
