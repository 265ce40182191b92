"""Learned rotations: what rounding is expected to cost, and that it does cost less after learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coldpress.quant.grid import Grid, dequantize
from coldpress.quant.learned_rotation import Reader, Writer, learn_rotation, nearest_rotation, rounding_error
from coldpress.quant.rotate import random_rotation
from coldpress.quant.rtn import range_grid, rtn

SIZE = 48


def weights(seed: int, rows: int = 64, columns: int = SIZE) -> np.ndarray:
    random = np.random.default_rng(seed)
    heavy = np.exp(random.standard_normal(columns))
    return (random.standard_normal((rows, columns)) * heavy).astype(np.float32)


def gram(seed: int) -> np.ndarray:
    """Of inputs that are correlated, a few of them loud."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((500, SIZE)) @ random.standard_normal((SIZE, SIZE))
    inputs[:, ::11] *= 20
    return (inputs.T @ inputs).astype(np.float32)


@pytest.mark.parametrize(
    "grid", [Grid(4, 16, True), Grid(4, 16, False), Grid(8, 32, True), Grid(2, 16, False)], ids=str
)
def test_the_expected_error_is_a_twelfth_of_each_step_squared(grid: Grid) -> None:
    weight, power = weights(0), np.random.default_rng(1).random(SIZE).astype(np.float32)
    expected = 0.0
    for row in weight.astype(np.float64):
        for start in range(0, SIZE, grid.block_size):
            block = row[start : start + grid.block_size]
            [step] = range_grid(block.astype(np.float32)[:, None], grid)[0]
            expected += float(step) ** 2 / 12 * power[start : start + grid.block_size].sum()
    found = rounding_error(torch.from_numpy(weight), torch.from_numpy(power), grid)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_is_what_rounding_really_costs(symmetric: bool) -> None:
    grid, random = Grid(4, 16, symmetric), np.random.default_rng(0)
    reader = Reader(torch.from_numpy(weights(0, 400)), torch.from_numpy(gram(1)))
    rotation = random_rotation(SIZE, 0)
    expected = float(reader.error(torch.from_numpy(rotation).float(), grid, random))
    assert _real(reader, rotation, grid) == pytest.approx(expected, rel=0.1)


def test_rounding_costs_less_after_learning() -> None:
    grid, start = Grid(4, 16, True), random_rotation(SIZE, 0)
    reader = Reader(torch.from_numpy(weights(0, 200)), torch.from_numpy(gram(1)))
    power = torch.from_numpy(np.random.default_rng(2).random(96).astype(np.float32))
    writer = Writer(torch.from_numpy(weights(3, 96).T.copy()), power)
    learned = learn_rotation(start, lambda step: [reader, writer], grid, seed=0, steps=60)
    before, after = (np.array([_real(turned, made, grid) for turned in (reader, writer)]) for made in (start, learned))
    assert (after < before).all()
    assert after.sum() < 0.8 * before.sum()
    assert np.abs(learned.T @ learned - np.eye(SIZE)).max() < 1e-12


def test_the_same_seed_learns_the_same() -> None:
    grid, start = Grid(4, 16, False), random_rotation(SIZE, 0)
    reader = Reader(torch.from_numpy(weights(0, 700)), torch.from_numpy(gram(1)))
    one, again, other = (learn_rotation(start, lambda step: [reader], grid, seed, steps=5) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_nearest_rotation_of_a_rotation_is_itself() -> None:
    rotation = random_rotation(SIZE, 5)
    np.testing.assert_allclose(nearest_rotation(rotation), rotation, atol=1e-12)


def _real(turned: Reader | Writer, rotation: np.ndarray, grid: Grid) -> float:
    """The relative squared error that rounding to nearest causes, in double precision."""
    weight = turned.weight.double().numpy()
    if isinstance(turned, Reader):
        weight, inputs = weight @ rotation, rotation.T @ turned.gram.double().numpy() @ rotation
    else:
        weight, inputs = rotation.T @ weight, np.diag(turned.power.double().numpy())
    missed = weight - dequantize(rtn(weight.astype(np.float32), grid), weight.shape[1])
    return float(np.trace(missed @ inputs @ missed.T) / np.trace(weight @ inputs @ weight.T))
