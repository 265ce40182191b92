"""The arrays of a quantized weight: what they stand for, padding, zeros, and requests that make no sense."""

from __future__ import annotations

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.clip import clip
from coldpress.quant.grid import Codes, Fit, Grid, dequantize, quantize, squared_error
from coldpress.quant.hqq import hqq
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn

HALVES = ("float16", "bfloat16")
GRIDS = [Grid(bits, 32, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]
NARROW = [Grid(bits, 32, symmetric, kind) for bits in (2, 3, 4, 8) for symmetric in (True, False) for kind in HALVES]


def clipped(weight: np.ndarray, grid: Grid) -> Codes:
    return clip(weight, np.eye(weight.shape[1], dtype=np.float32), grid)


def as_half(values: np.ndarray, kind: str) -> np.ndarray:
    """The values as the type itself holds them."""
    import ml_dtypes

    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    return values.astype(dtype).astype(np.float32)


@pytest.mark.parametrize(("bits", "block_size"), [(5, 32), (16, 32), (0, 32), (4, 24), (4, 8), (4, 512), (4, 0)])
def test_a_grid_that_nothing_holds_is_refused(bits: int, block_size: int) -> None:
    with pytest.raises(ColdpressError, match=str(bits if bits not in (2, 3, 4, 8) else block_size)):
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


def test_scales_of_an_unknown_type_are_refused() -> None:
    with pytest.raises(ColdpressError, match="float8"):
        Grid(4, 32, True, "float8")


@pytest.mark.parametrize("kind", HALVES)
def test_stored_scales_are_rounded_as_the_type_rounds(kind: str) -> None:
    values = np.random.default_rng(7).lognormal(-2, 2, 10_000).astype(np.float32)
    values = np.concatenate([values, -values, 1 + np.arange(64, dtype=np.float32) / 2**12])  # ties among the last
    values = values[np.abs(values) > 2.0**-14]
    assert np.array_equal(Grid(4, 32, True, kind).stored(values), as_half(values, kind))


@pytest.mark.parametrize("way", [rtn, kquant, hqq, clipped])
@pytest.mark.parametrize("grid", NARROW, ids=str)
def test_scales_come_out_as_their_type_holds_them(way, grid: Grid) -> None:
    weight = np.random.default_rng(8).standard_t(4, (20, 100)).astype(np.float32)
    weight[3], weight[4] = -np.abs(weight[3]) - 1, np.abs(weight[4]) + 1
    codes = way(weight, grid)
    assert np.array_equal(codes.scales, as_half(codes.scales, grid.scale_dtype))
    single = way(weight, Grid(grid.bits, 32, grid.symmetric))
    assert squared_error(weight, codes) <= (1.25 if grid.bits == 8 else 1.02) * squared_error(weight, single)


@pytest.mark.parametrize("grid", NARROW, ids=str)
def test_codes_are_the_nearest_on_the_stored_scales(grid: Grid) -> None:
    """The fit's own steps are for scales that the type does not hold."""
    weight = np.random.default_rng(9).standard_normal((6, 64)).astype(np.float32)

    def fit(columns: np.ndarray) -> Fit:
        scales = np.full(columns.shape[1], 4.1 / grid.top, np.float32)
        zeros = np.full(columns.shape[1], grid.middle, np.float32)
        return Fit(scales, zeros, np.clip(np.rint(columns / scales), -zeros, grid.top - zeros))

    codes = quantize(weight, grid, fit)
    scale = float(as_half(np.float32(4.1 / grid.top), grid.scale_dtype))
    exact = np.clip(np.round(weight.astype(np.float64) / scale) + grid.middle, 0, grid.top)
    assert (codes.scales == scale).all()
    assert np.array_equal(codes.codes.reshape(6, 64), exact)


@pytest.mark.parametrize("way", [rtn, kquant, hqq, clipped])
def test_scales_beyond_float16_are_refused(way) -> None:
    weight = np.random.default_rng(10).standard_normal((3, 64)).astype(np.float32) * np.float32(1e6)
    with pytest.raises(ColdpressError, match="float16 scales reach to") as caught:
        way(weight, Grid(4, 32, True, "float16"))
    assert caught.value.hint is not None and "float32" in caught.value.hint
    assert np.isfinite(way(weight, Grid(4, 32, True, "bfloat16")).scales).all()


@pytest.mark.parametrize("way", [rtn, kquant, hqq, clipped])
@pytest.mark.parametrize(("magnitude", "bits"), [(1e-5, 4), (1e-3, 8)])
def test_scales_below_float16s_normal_numbers_become_the_least_of_these(way, magnitude: float, bits: int) -> None:
    weight = np.random.default_rng(10).standard_normal((3, 64)).astype(np.float32) * np.float32(magnitude)
    codes = way(weight, Grid(bits, 32, True, "float16"))
    stored = np.abs(codes.scales)
    assert (stored >= 2.0**-14).all() and (stored == stored.astype(np.float16)).all()
    reached = codes.grid.middle * 2.0**-14
    assert np.abs(dequantize(codes, 64) - weight).max() <= max(2.0**-15, np.abs(weight).max() - reached)


@pytest.mark.parametrize("way", [rtn, kquant, hqq, clipped])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_of_zeros_have_a_scale_that_float16_holds(way, symmetric: bool) -> None:
    weight = np.random.default_rng(11).standard_normal((4, 128)).astype(np.float32)
    weight[1], weight[2, 32:64] = 0, 0
    codes = way(weight, Grid(4, 32, symmetric, "float16"))
    values = dequantize(codes, 128)
    assert not values[1].any() and not values[2, 32:64].any()
    assert (np.abs(codes.scales) >= 2.0**-14).all()


def test_a_grid_of_three_values_has_single_precision_scales() -> None:
    assert Grid(4, 32, True) == Grid(4, 32, True, "float32")
