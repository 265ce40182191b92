"""The grid search against brute force, against `rtn`, and on weights that already lie on a grid."""

from __future__ import annotations

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.grid import Codes, Grid, dequantize, squared_error
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn

GRIDS = [Grid(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (32, 128) for symmetric in (True, False)]
NARROW = [Grid(bits, 32, symmetric, "bfloat16") for bits in (3, 8) for symmetric in (True, False)]


def make_weight(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Half normal, half heavy-tailed."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal(shape)
    weight[::2] = random.standard_t(4, weight[::2].shape)
    return weight.astype(np.float32)


def block_errors(weight: np.ndarray, codes: Codes, importance: np.ndarray) -> np.ndarray:
    missed = weight.astype(np.float64) - dequantize(codes, weight.shape[1])
    return (missed**2 * importance).reshape(codes.codes.shape).sum(axis=-1)


def best_error(block: np.ndarray, grid: Grid, importance: np.ndarray) -> float:
    """The least weighted squared error of one block over 400 scales, each refitted once, and every zero point."""
    top, middle = 2**grid.bits - 1, 2 ** (grid.bits - 1)
    span = np.abs(block).max() if grid.symmetric else np.ptp(np.append(block, 0.0))
    scales = np.linspace(0.2, 1.5, 400)[:, None] * span / (middle if grid.symmetric else top)
    best = np.inf
    for zero in (middle, middle - 1) if grid.symmetric else range(top + 1):
        steps = np.clip(np.round(block / scales), -zero, top - zero)
        power = np.maximum((importance * steps**2).sum(axis=1), 1e-30)
        fitted = (importance * steps * block).sum(axis=1) / power
        best = min(best, (importance * (block - fitted[:, None] * steps) ** 2).sum(axis=1).min())
    return best


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits < 8], ids=str)
def test_the_error_is_close_to_the_least_there_is(grid: Grid, weighted: bool) -> None:
    weight = make_weight(0, (24, grid.block_size))
    random = np.random.default_rng(1)
    importance = random.lognormal(0, 1, grid.block_size).astype(np.float32) if weighted else np.ones(grid.block_size)
    codes = kquant(weight, grid, importance if weighted else None)
    found = block_errors(weight, codes, importance).sum()
    least = sum(best_error(block.astype(np.float64), grid, importance) for block in weight)
    assert found <= 1.03 * least


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits == 4], ids=str)
def test_a_quick_search_loses_little_and_less_than_rounding_to_nearest(grid: Grid) -> None:
    random = np.random.default_rng(11)
    weight = random.standard_normal((200, 4 * grid.block_size)).astype(np.float32)
    importance = random.lognormal(0, 1.5, weight.shape[1]).astype(np.float32)
    quick, whole, rounded = (
        block_errors(weight, codes, importance)
        for codes in (kquant(weight, grid, importance, quick=True), kquant(weight, grid, importance), rtn(weight, grid))
    )
    assert (quick <= rounded * 1.0001).all()
    assert whole.sum() < quick.sum() < 1.1 * whole.sum()


@pytest.mark.parametrize("grid", [*GRIDS, *NARROW], ids=str)
@pytest.mark.parametrize("kind", ["plain", "lognormal", "sparse"])
def test_no_block_is_worse_than_rounded_to_nearest(grid: Grid, kind: str) -> None:
    weight = make_weight(2, (60, 4 * grid.block_size))
    random = np.random.default_rng(3)
    importance = {
        "plain": np.ones(weight.shape[1]),
        "lognormal": random.lognormal(0, 3, weight.shape[1]),
        "sparse": (random.random(weight.shape[1]) < 0.01) * 1e-6,
    }[kind].astype(np.float32)
    searched = block_errors(weight, kquant(weight, grid, None if kind == "plain" else importance), importance)
    rounded = block_errors(weight, rtn(weight, grid), importance)
    assert (searched <= rounded * (1 + 1e-5)).all()
    assert searched.sum() < rounded.sum()


@pytest.mark.parametrize(("grid", "expected"), [(Grid(4, 32, True), 0.0815), (Grid(4, 32, False), 0.0770)])
def test_normal_weights_at_4_bits_have_the_error_of_a_good_search(grid: Grid, expected: float) -> None:
    weight = np.random.default_rng(4).standard_normal((200, 512)).astype(np.float32)
    assert np.sqrt(squared_error(weight, kquant(weight, grid)) / np.square(weight).sum()) < expected


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_weight_on_a_grid_stays_as_it_is(grid: Grid, weighted: bool) -> None:
    random = np.random.default_rng(5)
    codes = random.integers(0, grid.top + 1, (40, 3, grid.block_size))
    codes[..., 3], codes[..., 7] = 0, grid.top
    scales = random.standard_normal((40, 3, 1)).astype(np.float16).astype(np.float32)
    zeros = grid.middle if grid.symmetric else random.integers(0, grid.top + 1, (40, 3, 1))
    scales = scales if grid.symmetric else np.abs(scales)
    weight = (scales * (codes - zeros).astype(np.float32)).reshape(40, -1)
    importance = random.random(weight.shape[1]).astype(np.float32) if weighted else None
    assert np.array_equal(dequantize(kquant(weight, grid, importance), weight.shape[1]), weight)


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    weight = make_weight(6, (50, 256))
    importance = np.where(np.arange(256) % 4 == 0, 100, 1).astype(np.float32)
    grid = Grid(4, 32, False)
    plain, weighted = kquant(weight, grid), kquant(weight, grid, importance)
    assert squared_error(weight, weighted, importance) < 0.9 * squared_error(weight, plain, importance)
    assert squared_error(weight, weighted) > squared_error(weight, plain)


def test_equal_importance_is_none_at_all() -> None:
    weight, grid = make_weight(7, (20, 100)), Grid(4, 32, True)
    plain, equal = kquant(weight, grid), kquant(weight, grid, np.full(100, 1e-9, np.float32))
    assert np.array_equal(plain.codes, equal.codes)
    assert np.allclose(plain.scales, equal.scales, rtol=1e-6)


def test_columns_without_any_importance_do_no_harm() -> None:
    weight, grid = make_weight(8, (20, 64)), Grid(4, 32, False)
    codes = kquant(weight, grid, np.zeros(64, np.float32))
    assert np.isfinite(codes.scales).all()
    assert squared_error(weight, codes) <= 1.001 * squared_error(weight, rtn(weight, grid))


@pytest.mark.parametrize("wrong", [np.ones(63), np.ones((64, 1)), np.full(64, -1.0), np.full(64, np.nan)])
def test_importance_must_fit_the_weight(wrong: np.ndarray) -> None:
    with pytest.raises(ColdpressError, match="importance"):
        kquant(np.ones((4, 64), np.float32), Grid(4, 32, True), wrong.astype(np.float32))
