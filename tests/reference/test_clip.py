"""The clipping search against brute force in float64, in its own measure: the Gram matrix of each block."""

from __future__ import annotations

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.clip import clip, gram_blocks
from coldpress.quant.grid import Codes, Grid, dequantize, output_errors
from coldpress.quant.rtn import rtn

GRIDS = [Grid(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (16, 128) for symmetric in (True, False)]
NARROW = [Grid(bits, 32, symmetric, "bfloat16") for bits in (3, 8) for symmetric in (True, False)]


def make_layer(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((4 * columns, 8)) @ random.standard_normal((8, columns))
    inputs = (inputs + random.standard_normal(inputs.shape)) * random.lognormal(0, 0.7, columns)
    return random.standard_t(5, (rows, columns)).astype(np.float32), (inputs.T @ inputs).astype(np.float32)


def block_errors(weight: np.ndarray, codes: Codes, gram: np.ndarray) -> np.ndarray:
    """``[rows, blocks]``, each with its own part of the Gram matrix."""
    missed = (weight.astype(np.float64) - dequantize(codes, weight.shape[1])).reshape(codes.codes.shape)
    return np.einsum("rbi,bij,rbj->rb", missed, gram_blocks(gram, codes.grid).astype(np.float64), missed)


def best_error(block: np.ndarray, gram: np.ndarray, grid: Grid) -> float:
    """The least error of a block over 300 widths of `rtn`'s range, each with its scale fitted once more."""
    best = np.inf
    low, high = min(block.min(), 0), max(block.max(), 0)
    for width in np.linspace(0.3, 1.2, 300):
        if grid.symmetric:
            scale, zero = np.abs(block).max() * width / grid.middle, grid.middle - (high > -low)
        else:
            scale = (high - low) * width / grid.top
            zero = np.round(-low * width / scale)
        steps = np.clip(np.round(block / scale), -zero, grid.top - zero)
        scale = block @ gram @ steps / max(steps @ gram @ steps, 1e-30)
        missed = block - scale * steps
        best = min(best, missed @ gram @ missed)
    return best


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits < 8], ids=str)
def test_the_error_is_close_to_that_of_many_more_widths(grid: Grid) -> None:
    weight, gram = make_layer(0, 60, grid.block_size)
    least = sum(best_error(row, gram.astype(np.float64), grid) for row in weight.astype(np.float64))
    assert block_errors(weight, clip(weight, gram, grid), gram).sum() < 1.5 * least


@pytest.mark.parametrize("grid", [*GRIDS, *NARROW], ids=str)
def test_no_block_is_worse_than_rounded_to_nearest(grid: Grid) -> None:
    weight, gram = make_layer(1, 50, 3 * grid.block_size)
    searched = block_errors(weight, clip(weight, gram, grid), gram)
    rounded = block_errors(weight, rtn(weight, grid), gram)
    assert (searched <= rounded * 1.001).all()
    assert searched.sum() < 0.95 * rounded.sum()


def test_the_output_gets_better_and_padding_stays_zero() -> None:
    weight, gram = make_layer(2, 40, 100)
    for symmetric in (True, False):
        grid = Grid(4, 32, symmetric)
        codes = clip(weight, gram, grid)
        assert not dequantize(codes, 128)[:, 100:].any()
        assert output_errors(weight, codes, gram).sum() < output_errors(weight, rtn(weight, grid), gram).sum()


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e20])
def test_the_size_of_the_inputs_does_not_matter(factor: float) -> None:
    weight, gram = make_layer(3, 10, 64)
    grid = Grid(4, 32, False)
    codes = clip(weight, gram * np.float32(factor), grid)
    expected = clip(weight, gram, grid) if factor else rtn(weight, grid)
    assert (codes.codes == expected.codes).mean() > 0.999
    assert np.isfinite(codes.scales).all()


def test_the_gram_matrix_must_fit() -> None:
    with pytest.raises(ColdpressError, match="Gram matrix"):
        clip(np.ones((4, 64), np.float32), np.eye(32, dtype=np.float32), Grid(4, 32, True))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_the_gram_matrix_must_be_finite(wrong: float) -> None:
    gram = np.eye(64, dtype=np.float32)
    gram[2, 60] = wrong  # outside of the blocks that are read
    with pytest.raises(ColdpressError, match="not finite"):
        clip(np.ones((4, 64), np.float32), gram, Grid(4, 32, True))


@pytest.mark.parametrize("grid", [Grid(3, 32, True), Grid(4, 32, False, "bfloat16")], ids=str)
def test_rows_of_one_value_and_of_none(grid: Grid) -> None:
    weight, gram = make_layer(4, 4, 64)
    weight[0], weight[1] = 0, 0.5
    values = dequantize(clip(weight, gram, grid), 64)
    assert not values[0].any() and np.allclose(values[1], 0.5, rtol=1e-2)
