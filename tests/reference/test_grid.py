"""The arrays of a quantized weight: what they stand for, padding, zeros, and requests that make no sense."""

from __future__ import annotations

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.grid import Codes, Grid, dequantize, squared_error
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn

GRIDS = [Grid(bits, 32, symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]


@pytest.mark.parametrize(("bits", "block_size"), [(3, 32), (16, 32), (0, 32), (4, 24), (4, 8), (4, 512), (4, 0)])
def test_a_grid_that_no_kernel_reads_is_refused(bits: int, block_size: int) -> None:
    with pytest.raises(ColdpressError, match=str(bits if bits not in (2, 4, 8) else block_size)):
        Grid(bits, block_size, True)


def test_a_code_stands_for_scale_times_its_distance_from_the_zero_point() -> None:
    codes = np.arange(16, dtype=np.uint8).reshape(1, 1, 16)
    scales = np.array([[0.5]], np.float32)
    asymmetric = Codes(codes, scales, np.array([[3]], np.uint8), Grid(4, 16, False))
    assert dequantize(asymmetric, 16).tolist() == [[0.5 * (code - 3) for code in range(16)]]
    symmetric = Codes(codes, -scales, None, Grid(4, 16, True))
    assert dequantize(symmetric, 5).tolist() == [[-0.5 * (code - 8) for code in range(5)]]


def test_squared_error_is_that_of_the_values_it_counts() -> None:
    weight = np.random.default_rng(0).standard_normal((700, 500)).astype(np.float32)
    importance = np.random.default_rng(1).random(500).astype(np.float32)
    codes = rtn(weight, Grid(4, 32, False))
    missed = weight.astype(np.float64) - dequantize(codes, 500)
    assert squared_error(weight, codes) == pytest.approx((missed**2).sum(), rel=1e-6)
    assert squared_error(weight, codes, importance) == pytest.approx((missed**2 * importance).sum(), rel=1e-6)


@pytest.mark.parametrize("quantize", [rtn, kquant])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_padding_is_exactly_zero_and_costs_nothing(quantize, grid: Grid) -> None:
    # far from zero: a range that ignored the padding's zeros would not hold them
    weight = 5 + np.random.default_rng(2).standard_normal((7, 75)).astype(np.float32)
    codes = quantize(weight, grid)
    assert codes.codes.shape == (7, 3, 32) and codes.scales.shape == (7, 3)
    assert not dequantize(codes, 96)[:, 75:].any()
    padded = quantize(np.pad(weight, ((0, 0), (0, 21))), grid)
    assert np.array_equal(codes.codes, padded.codes) and np.array_equal(codes.scales, padded.scales)


@pytest.mark.parametrize("quantize", [rtn, kquant])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blocks_of_zeros_stay_zero_beside_others(quantize, grid: Grid) -> None:
    weight = np.random.default_rng(3).standard_normal((4, 128)).astype(np.float32)
    weight[1] = 0
    weight[2, 32:64] = 0
    weight[3, :32] = 1e-41  # subnormal numbers, of which no grid can be made
    codes = quantize(weight, grid)
    assert np.isfinite(codes.scales).all()
    values = dequantize(codes, 128)
    assert not values[1].any() and not values[2, 32:64].any()
    assert np.abs(values[3, :32]).max() < 1e-30


@pytest.mark.parametrize("quantize", [rtn, kquant])
@pytest.mark.parametrize("magnitude", [1e-20, 1e15])
def test_very_small_and_very_large_weights_keep_their_precision(quantize, magnitude: float) -> None:
    weight = np.random.default_rng(4).standard_normal((5, 64)).astype(np.float32)
    grid = Grid(4, 32, False)
    ratio = dequantize(quantize(weight * np.float32(magnitude), grid), 64) / magnitude - weight
    assert np.square(ratio).sum() <= 0.009 * np.square(weight).sum()


@pytest.mark.parametrize("quantize", [rtn, kquant])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30])
def test_weights_that_are_no_numbers_are_refused(quantize, wrong: float) -> None:
    weight = np.ones((3, 64), np.float32)
    weight[1, 40] = wrong
    with pytest.raises(ColdpressError, match="not finite"):
        quantize(weight, Grid(4, 32, True))


@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (4, 0)])
def test_only_matrices_are_quantized(shape: tuple[int, ...]) -> None:
    with pytest.raises(ColdpressError, match="shape"):
        rtn(np.zeros(shape, np.float32), Grid(4, 32, True))


@pytest.mark.parametrize("quantize", [rtn, kquant])
def test_rows_do_not_depend_on_each_other_however_many_there_are(quantize) -> None:
    weight = np.random.default_rng(5).standard_normal((1100, 576)).astype(np.float32)
    grid = Grid(4, 64, False)
    whole, part = quantize(weight, grid), quantize(weight[400:600], grid)
    assert np.array_equal(whole.codes[400:600], part.codes)
    assert np.array_equal(whole.scales[400:600], part.scales)
    assert np.array_equal(whole.zero_points[400:600], part.zero_points)


@pytest.mark.parametrize("quantize", [rtn, kquant])
def test_no_rows_give_no_codes(quantize) -> None:
    codes = quantize(np.zeros((0, 64), np.float32), Grid(4, 32, False))
    assert codes.codes.shape == (0, 2, 32) and dequantize(codes, 64).shape == (0, 64)


@pytest.mark.parametrize("quantize", [rtn, kquant])
def test_half_precision_weights_are_taken_as_they_are(quantize) -> None:
    weight = np.random.default_rng(6).standard_normal((9, 100)).astype(np.float16)
    half, single = (quantize(array, Grid(4, 32, False)) for array in (weight, weight.astype(np.float32)))
    assert np.array_equal(half.codes, single.codes) and np.array_equal(half.scales, single.scales)
    assert squared_error(weight, half) == squared_error(weight.astype(np.float32), half)
