"""Half-quadratic quantization against the same turns for one block in float64, and its promises."""

from __future__ import annotations

import numpy as np
import pytest

from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.hqq import hqq
from coldpress.quant.rtn import rtn

GRIDS = [Grid(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (32, 128) for symmetric in (True, False)]
NARROW = [Grid(bits, 32, symmetric, "bfloat16") for bits in (3, 8) for symmetric in (True, False)]


def norms(weight: np.ndarray, codes: Codes) -> np.ndarray:
    """The sum of ``|error| ** 0.7`` of each block."""
    missed = np.abs(weight.astype(np.float64) - dequantize(codes, weight.shape[1]))
    return (missed.reshape(codes.codes.shape) ** 0.7).sum(axis=-1)


def slow_hqq(block: np.ndarray, grid: Grid) -> float:
    """The least norm over 20 turns: which errors are outliers, then scale and zero point for the rest."""
    codes = rtn(block[None].astype(np.float32), grid)
    scale, steps = float(codes.scales[0, 0]), codes.codes[0, 0].astype(float)
    zero = float(grid.middle if codes.zero_points is None else codes.zero_points[0, 0])
    steps -= zero
    if scale < 0:
        scale, zero, steps = -scale, zero - 1, -steps
    best, strength = (np.abs(block - scale * steps) ** 0.7).sum(), 10.0
    for _ in range(20):
        errors = (block - scale * steps) / scale
        left = np.abs(errors) - np.maximum(np.abs(errors), 1e-30) ** -0.3 / strength
        inner = block - scale * np.sign(errors) * np.maximum(left, 0)
        if grid.symmetric:
            scale = inner @ steps / (steps @ steps)
        else:
            scale, crossing = np.polyfit(steps, inner, 1)
            zero = np.clip(np.round(zero - crossing / scale), 0, grid.top)
        steps = np.clip(np.round(block / scale), -zero, grid.top - zero)
        best = min(best, (np.abs(block - scale * steps) ** 0.7).sum())
        strength *= 1.05
    return float(best)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits < 8], ids=str)
def test_hqq_is_the_slow_loop(grid: Grid) -> None:
    weight = np.random.default_rng(0).standard_t(4, (40, grid.block_size)).astype(np.float32)
    found = norms(weight, hqq(weight, grid))[:, 0]
    slow = np.array([slow_hqq(row, grid) for row in weight.astype(np.float64)])
    # a rounding that falls the other way in one precision leads to another walk in a few blocks
    assert (np.abs(found / slow - 1) < 1e-3).mean() > 0.9
    assert found.sum() == pytest.approx(slow.sum(), rel=0.01)


@pytest.mark.parametrize("grid", [*GRIDS, *NARROW], ids=str)
def test_no_block_is_worse_than_rounded_to_nearest(grid: Grid) -> None:
    weight = np.random.default_rng(1).standard_t(3, (50, 4 * grid.block_size)).astype(np.float32)
    found, rounded = norms(weight, hqq(weight, grid)), norms(weight, rtn(weight, grid))
    assert (found <= rounded * (1 + 1e-4)).all()
    assert found.sum() < rounded.sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_few_outliers_cost_the_many_others_less(symmetric: bool) -> None:
    random = np.random.default_rng(2)
    weight = random.standard_normal((100, 128)).astype(np.float32)
    weight[:, 5] *= 4
    grid = Grid(4, 128, symmetric)
    missed = [np.median(np.abs(weight - dequantize(way(weight, grid), 128))) for way in (hqq, rtn)]
    assert missed[0] < 0.97 * missed[1]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_weight_on_a_grid_keeps_it(grid: Grid) -> None:
    random = np.random.default_rng(3)
    codes = random.integers(0, grid.top + 1, (20, 2, grid.block_size))
    codes[..., 3], codes[..., 7] = 0, grid.top
    if grid.symmetric and grid.bits == 8:
        # there the search starts from 127 steps to both sides
        codes = np.maximum(codes, 1)
    zeros = grid.middle if grid.symmetric else random.integers(0, grid.top + 1, (20, 2, 1))
    weight = ((codes - zeros) * random.random((20, 2, 1))).reshape(20, -1).astype(np.float32)
    assert np.allclose(dequantize(hqq(weight, grid), weight.shape[1]), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rows_of_one_value_and_of_none(grid: Grid) -> None:
    weight = np.zeros((4, 100), np.float32)
    weight[1], weight[2] = 0.25, -3
    assert np.allclose(dequantize(hqq(weight, grid), 100), weight, rtol=1e-2)
