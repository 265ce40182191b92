"""Round to nearest: the grid of a block follows from its range alone."""

from __future__ import annotations

import numpy as np

from coldpress.quant.grid import TINY, Codes, Fit, Floats, Grid, block_range, quantize, round_to_grid
from coldpress.quant.lattice import keeping_lattice


def rtn(weight: Floats, grid: Grid) -> Codes:
    """Quantize ``weight [rows, K]`` by rounding it to the grid that spans each block's range."""
    return quantize(weight, grid, keeping_lattice(weight, grid, lambda columns: _fit(columns, grid)))


def range_grid(columns: Floats, grid: Grid) -> tuple[Floats, Floats]:
    """Scale and zero ``[G]`` (as in `Fit`) that span the ranges of blocks ``[block_size, G]``; scales as stored.

    Symmetric, up to 4 bits: the weight of largest magnitude gets code 0, which is ``middle`` steps away from zero
    (the other end only reaches ``middle - 1``), as in GGUF's Q4_0. Symmetric, 8 bits: magnitude over 127, as in Q8_0.
    Asymmetric: least to greatest weight, zero included, over all codes; the zero point is a whole code.
    """
    low, high = block_range(columns)
    if not grid.symmetric:
        span: Floats = np.maximum(high - low, TINY)
        scales = grid.stored(span / np.float32(grid.top))
        return scales, np.clip(np.rint(-low / scales), np.float32(0), np.float32(grid.top))
    magnitude: Floats = np.maximum(np.maximum(-low, high), TINY)
    if grid.bits == 8:
        return grid.stored(magnitude / np.float32(grid.middle - 1)), np.full_like(low, grid.middle)
    zeros = np.where(-low >= high, np.float32(grid.middle), np.float32(grid.middle - 1))
    return grid.stored(magnitude / np.float32(grid.middle)), zeros


def _fit(columns: Floats, grid: Grid) -> Fit:
    scales, zeros = range_grid(columns, grid)
    return Fit(scales, zeros, round_to_grid(columns, grid, scales, zeros, np.empty_like(columns)))
