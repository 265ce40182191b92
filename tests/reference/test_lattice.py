"""Weights that were quantized before: their codes are found again, whatever the algorithm; others are left alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from coldpress.quant.calibrated import ALGORITHMS, calibrate
from coldpress.quant.grid import Grid, dequantize
from coldpress.quant.kquant import kquant
from coldpress.quant.lattice import Lattice, lattice_of, on_lattice
from coldpress.quant.rtn import rtn

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def weights(rows: int = 32, columns: int = 512, seed: int = 0) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_t(4, (rows, columns))).astype(np.float32)


def unpacked(name: str) -> np.ndarray:
    """What the package gguf makes of weights in one of its formats."""
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    return gguf.quants.dequantize(gguf.quants.quantize(weights(), kind), kind).astype(np.float32)


def constructed(bits: int, block: int, symmetric: bool, scales: str, stored: str) -> np.ndarray:
    """Multiples of one number a block, computed in float64 from scales of one type and rounded to another."""
    generator = np.random.default_rng(bits + block)
    shape = (32, 512 // block, block)
    zeros = 2 ** (bits - 1) if symmetric else generator.integers(0, 2**bits, shape[:2])[..., None]
    steps = np.clip(np.rint(generator.standard_normal(shape) * 2 ** (bits - 2.5)) + zeros, 0, 2**bits - 1) - zeros
    scale = generator.uniform(1e-3, 2e-3, shape[:2]).astype(TYPES[scales]).astype(np.float64)[..., None]
    return (steps * scale).astype(TYPES[stored]).astype(np.float32).reshape(32, 512)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q8_0", 8), ("Q5_0", 8)])
def test_formats_of_gguf_without_minima_come_out_bit_by_bit(name: str, bits: int, symmetric: bool) -> None:
    weight = unpacked(name)
    codes = on_lattice(weight, Grid(bits, 32, symmetric, "float16"))
    assert codes is not None
    np.testing.assert_array_equal(dequantize(codes, 512), weight)
    np.testing.assert_array_equal(codes.scales.astype(np.float16), codes.scales)


@pytest.mark.parametrize(("name", "bits"), [("Q4_1", 4), ("Q5_1", 5)])
def test_float_minima_fit_no_grid_and_their_distance_is_told(name: str, bits: int) -> None:
    weight = unpacked(name)
    assert on_lattice(weight, Grid(4, 32, False, "float16")) is None
    found = lattice_of(weight)
    assert found is not None
    assert (found.bits, found.block_size, found.symmetric) == (bits, 32, False)
    blocks = weight.astype(np.float64).reshape(-1, 32)
    zeros = -blocks.min(axis=1) / ((blocks.max(axis=1) - blocks.min(axis=1)) / (2**bits - 1))
    assert found.distance == pytest.approx(np.abs(zeros - np.rint(zeros)).mean(), abs=0.08)


@pytest.mark.parametrize("scales", TYPES)
@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize(
    ("bits", "block", "symmetric"), [(4, 32, True), (4, 128, True), (4, 64, False), (4, 512, True)]
)
def test_scales_are_found_again_through_the_rounding_of_the_weights(
    bits: int, block: int, symmetric: bool, scales: str, stored: str
) -> None:
    weight = constructed(bits, block, symmetric, scales, stored)
    codes = on_lattice(weight, Grid(bits, 32, symmetric, "float32" if scales == "float32" else "float16"))
    assert codes is not None
    again = dequantize(codes, 512).astype(TYPES[stored]).astype(np.float32)
    np.testing.assert_array_equal(again, weight)


def test_scales_that_float16_lacks_are_rounded_alone() -> None:
    weight = constructed(4, 32, True, "float32", "float32")
    exact, half = (on_lattice(weight, Grid(4, 32, True, scale_dtype)) for scale_dtype in ("float32", "float16"))
    assert exact is not None and half is not None
    np.testing.assert_array_equal(dequantize(exact, 512), weight)
    np.testing.assert_allclose(dequantize(half, 512), weight, rtol=2.0**-11)


def test_a_channel_of_8_bits_is_found_in_its_blocks() -> None:
    weight = constructed(8, 512, True, "float16", "float32")
    codes = on_lattice(weight, Grid(8, 32, True, "float16"))
    assert codes is not None
    np.testing.assert_array_equal(dequantize(codes, 512), weight)


@pytest.mark.parametrize(
    ("weight", "grid"),
    [
        (constructed(4, 32, True, "float16", "float32"), Grid(4, 128, True)),
        (constructed(4, 32, False, "float16", "float32"), Grid(4, 32, True)),
        (constructed(8, 32, True, "float16", "float32"), Grid(4, 32, False)),
        (weights(), Grid(4, 32, False)),
        (weights(), Grid(8, 16, True)),
        (weights().astype(np.float16).astype(np.float32), Grid(4, 16, False)),
        (weights().astype(ml_dtypes.bfloat16).astype(np.float32), Grid(8, 32, True)),
        (np.full((2, 32), np.nan, np.float32), Grid(4, 32, True)),
    ],
)
def test_what_a_grid_does_not_hold_is_not_taken_for_it(weight: np.ndarray, grid: Grid) -> None:
    assert on_lattice(weight, grid) is None


def test_one_block_off_the_grid_is_noticed_and_the_others_are_kept() -> None:
    weight = unpacked("Q4_0")
    weight[7, 40] *= np.float32(1.01)
    grid = Grid(4, 32, False, "float16")
    assert on_lattice(weight, grid) is None
    for algorithm in (rtn, kquant):
        missed = (dequantize(algorithm(weight, grid), 512) != weight).reshape(32, 16, 32).any(axis=2)
        assert missed[7, 1] and missed.sum() == 1


def test_a_padded_block_is_on_the_grid_too() -> None:
    weight = unpacked("Q4_0")[:, :500]
    codes = on_lattice(weight, Grid(4, 32, False, "float16"))
    assert codes is not None
    np.testing.assert_array_equal(dequantize(codes, 500), weight)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_algorithm_keeps_the_codes(algorithm: str, symmetric: bool) -> None:
    weight = unpacked("Q4_0")
    inputs = np.random.default_rng(1).standard_normal((600, 512)).astype(np.float32)
    made = calibrate(weight, inputs.T @ inputs, Grid(4, 32, symmetric, "float16"), algorithm, tokens=600)
    np.testing.assert_array_equal(dequantize(made.codes, 512), weight)
    assert made.on_lattice
    assert made.error == 0


@pytest.mark.parametrize(
    ("bits", "block", "symmetric"), [(4, 32, True), (4, 128, True), (4, 64, False), (8, 128, True), (6, 16, True)]
)
def test_the_coarsest_lattice_is_told(bits: int, block: int, symmetric: bool) -> None:
    weight = constructed(bits, block, symmetric, "float16", "float32")
    assert lattice_of(weight) == Lattice(bits, block, symmetric)


@pytest.mark.parametrize("stored", TYPES)
def test_nothing_is_told_of_other_weights(stored: str) -> None:
    for seed in range(20):
        assert lattice_of(weights(seed=seed).astype(TYPES[stored]).astype(np.float32)) is None
