"""Round to nearest against a slow loop in float64, and weights that already lie on a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coldpress.quant.grid import Grid, dequantize
from coldpress.quant.rtn import rtn

GRIDS = [Grid(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (16, 128) for symmetric in (True, False)]


def slow_rtn(block: list[float], grid: Grid) -> tuple[list[int], float, int]:
    """Codes, scale and zero point of one block."""
    top, middle = 2**grid.bits - 1, 2 ** (grid.bits - 1)
    if not grid.symmetric:
        low, high = min(0.0, *block), max(0.0, *block)
        scale = (high - low) / top
        zero = round(-low / scale)
    else:
        largest = max(block, key=abs)
        scale, zero = abs(largest) / 127 if grid.bits == 8 else largest / -middle, middle
    return [min(max(round(value / scale) + zero, 0), top) for value in block], scale, zero


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rtn_is_the_slow_loop(grid: Grid) -> None:
    weight = np.random.default_rng(0).standard_t(4, (9, grid.block_size * 3)).astype(np.float32)
    codes = rtn(weight, grid)
    for place in np.ndindex(9, 3):
        block = weight.reshape(9, 3, -1)[place].astype(np.float64).tolist()
        slow, scale, zero = slow_rtn(block, grid)
        assert math.isclose(codes.scales[place], scale, rel_tol=1e-6)
        assert codes.zero_points is None or codes.zero_points[place] == zero
        for value, code, expected in zip(block, codes.codes[place].tolist(), slow, strict=True):
            tie = abs(value / scale % 1 - 0.5) < 1e-4
            assert code == expected or (tie and abs(code - expected) == 1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_weight_is_further_than_a_step_from_its_code(grid: Grid) -> None:
    weight = np.random.default_rng(1).standard_normal((20, grid.block_size * 2)).astype(np.float32)
    codes = rtn(weight, grid)
    missed = np.abs(weight - dequantize(codes, weight.shape[1])).reshape(codes.codes.shape)
    # half a step, and up to another where the end of the range falls between two codes
    assert (missed <= np.abs(codes.scales)[..., None] * 1.0001).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_weight_of_largest_magnitude_gets_code_zero_and_is_exact(bits: int) -> None:
    weight = np.random.default_rng(2).standard_normal((50, 32)).astype(np.float32)
    codes = rtn(weight, Grid(bits, 32, True))
    largest = np.abs(weight).argmax(axis=1)[:, None]
    assert not np.take_along_axis(codes.codes[:, 0], largest, 1).any()
    values = dequantize(codes, 32)
    assert np.array_equal(np.take_along_axis(values, largest, 1), np.take_along_axis(weight, largest, 1))
    assert (codes.scales < 0).any() and (codes.scales > 0).any()


def test_symmetric_8_bits_stay_within_127_steps() -> None:
    codes = rtn(np.random.default_rng(3).standard_normal((50, 64)).astype(np.float32), Grid(8, 32, True))
    assert codes.codes.min() == 1 and codes.codes.max() == 255 and (codes.scales > 0).all()


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if not grid.symmetric], ids=str)
def test_zero_has_a_code_on_every_grid(grid: Grid) -> None:
    weight = 3 + np.random.default_rng(4).standard_normal((20, grid.block_size)).astype(np.float32)
    weight[:10] *= -1
    weight[:, 5] = 0
    assert not dequantize(rtn(weight, grid), grid.block_size)[:, 5].any()


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q8_0", 8)])
def test_a_gguf_tensor_is_packed_again_without_loss(name: str, bits: int) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    weight = np.random.default_rng(5).standard_t(4, (64, 256)).astype(np.float32)
    weight[3, 32:64] = 0
    stored = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    assert np.array_equal(dequantize(rtn(stored, Grid(bits, 32, True)), 256), stored)
