"""Half-quadratic quantization: the grid that leaves most weights a small error, and a few outliers a large one.

As in HQQ (https://mobiusml.github.io/hqq_blog), the error is measured by the sum of ``|error| ** 0.7``, which cares
less for outliers than squares do. Its minimum is found by turns: the errors are split into a part that counts as
outliers (shrinkage, in closed form) and a rest, and the grid is fitted to the weights without their outliers by least
squares. What differs: the zero point is a whole code, as the runtime's kernels want it, so scale and zero point are
fitted together and the zero point rounded; the strength of the shrinkage counts in steps of the grid, so it does not
depend on the size of the weights; and the best grid of all turns is kept, that of `rtn` among them. It needs no data.
"""

from __future__ import annotations

import numpy as np

from coldpress.quant.grid import TINY, Codes, Fit, Floats, Grid, quantize, round_to_grid
from coldpress.quant.rtn import range_grid

_NORM = np.float32(0.7)
_TURNS = 20
#: weight of the split against the norm, in steps of the grid: at first only errors of many tenths of a step count as
#: outliers; it grows from turn to turn, and in the end none do
_STRENGTH, _GROWTH = 10.0, 1.05


def hqq(weight: Floats, grid: Grid) -> Codes:
    """Quantize ``weight [rows, K]`` with grids of a small sum of ``|error| ** 0.7``; no block has more than `rtn`'s."""
    return quantize(weight, grid, lambda columns: _fit(columns, grid))


def _fit(columns: Floats, grid: Grid) -> Fit:
    scales, zeros = range_grid(columns, grid)
    steps = round_to_grid(columns, grid, scales, zeros, np.empty_like(columns))
    best, least = Fit(scales, zeros, steps.copy()), _norm(columns - scales * steps)
    strength = _STRENGTH
    for _ in range(_TURNS):
        errors: Floats = np.divide(columns - scales * steps, scales)
        inner = columns - _shrink(errors, strength) * scales
        scales, zeros = _refit(inner, steps, (scales, zeros), grid)
        round_to_grid(columns, grid, scales, zeros, steps)
        # what is kept has stored scales; the walk goes on from the others, as one turn moves few to the next stored one
        stored, kept = grid.stored(scales), steps
        if stored is not scales:
            kept = round_to_grid(columns, grid, stored, zeros, np.empty_like(steps))
        norms = _norm(columns - stored * kept)
        better = norms < least
        least = np.where(better, norms, least)
        best.scales, best.zeros = np.where(better, stored, best.scales), np.where(better, zeros, best.zeros)
        np.copyto(best.steps, kept, where=better)
        strength *= _GROWTH
    return best


def _norm(errors: Floats) -> Floats:
    total: Floats = np.add.reduce(np.power(np.abs(errors), _NORM), axis=0)
    return total


def _shrink(errors: Floats, strength: float) -> Floats:
    """The part of ``errors`` that counts as outliers, by generalized soft thresholding."""
    size = np.abs(errors)
    with np.errstate(divide="ignore"):
        left = size - np.power(size, _NORM - np.float32(1)) / np.float32(strength)
    return np.sign(errors) * np.maximum(left, np.float32(0))


def _refit(inner: Floats, steps: Floats, grids: tuple[Floats, Floats], grid: Grid) -> tuple[Floats, Floats]:
    """Scale and zero ``[G]`` by least squares for ``inner`` and given steps; the zero as a whole code.

    A line through the weights over their codes has the scale as its slope, and the zero point where it crosses zero.
    """
    scales, zeros = grids
    if grid.symmetric:
        power = np.einsum("bg,bg->g", steps, steps)
        fitted = np.einsum("bg,bg->g", inner, steps) / np.maximum(power, TINY)
        return np.where(fitted > TINY, fitted, scales), zeros
    middle, mean = steps.mean(axis=0), inner.mean(axis=0)
    spread = steps - middle
    power = np.einsum("bg,bg->g", spread, spread)
    fitted = np.einsum("bg,bg->g", spread, inner) / np.maximum(power, TINY)
    fitted = np.where(fitted > TINY, fitted, scales)
    moved = np.rint(zeros + middle - mean / fitted)
    return fitted, np.clip(moved, np.float32(0), np.float32(grid.top))
