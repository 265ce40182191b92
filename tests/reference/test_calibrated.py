"""From a name to codes: each algorithm's promise, the errors told, and requests that make no sense."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.calibrated import ALGORITHMS, CALIBRATED, PLAIN, calibrate
from coldpress.quant.clip import clip
from coldpress.quant.gptq import gptq, shrink, to_torch
from coldpress.quant.grid import Codes, Grid, dequantize, squared_error
from coldpress.quant.hqq import hqq
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn

GRIDS = [Grid(bits, 32, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]
GRIDS += [Grid(bits, 64, False, kind) for bits in (3, 8) for kind in ("float16", "bfloat16")]
GRID = Grid(4, 32, False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Layers this small are slower with more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_inputs(seed: int, tokens: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(columns).standard_normal((columns // 4, columns))
    power = np.random.default_rng(columns + 1).lognormal(0, 0.7, columns)
    return (random.standard_normal((tokens, columns // 4)) @ mix + random.standard_normal((tokens, columns))) * power


def make_layer(seed: int, rows: int = 24, columns: int = 150) -> tuple[np.ndarray, np.ndarray]:
    inputs = make_inputs(seed, 8 * columns, columns)
    weight = np.random.default_rng(seed + 1).standard_normal((rows, columns))
    return weight.astype(np.float32), (inputs.T @ inputs).astype(np.float32)


def row_errors(weight: np.ndarray, codes: Codes, gram: np.ndarray) -> np.ndarray:
    missed = weight.astype(np.float64) - dequantize(codes, weight.shape[1])
    return ((missed @ gram.astype(np.float64)) * missed).sum(axis=1)


def same(one: Codes, other: Codes) -> bool:
    return np.array_equal(one.codes, other.codes) and np.array_equal(one.scales, other.scales)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_and_what_follows_it_leave_no_row_worse_than_rtn(grid: Grid) -> None:
    weight, gram = make_layer(0)
    rounded = row_errors(weight, rtn(weight, grid), gram)
    by_gptq, best = (calibrate(weight, gram, grid, name) for name in ("gptq", "best"))
    assert (row_errors(weight, by_gptq.codes, gram) <= rounded * 1.001).all()
    assert (row_errors(weight, best.codes, gram) <= row_errors(weight, by_gptq.codes, gram) * 1.001).all()
    assert best.error < by_gptq.error < 0.7 * by_gptq.rtn_error


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_algorithm_is_what_its_name_says(grid: Grid) -> None:
    weight, gram = make_layer(1)
    power = np.diag(gram).copy()
    made = {name: calibrate(weight, gram, grid, name) for name in ALGORITHMS}
    assert same(made["rtn"].codes, rtn(weight, grid)) and same(made["hqq"].codes, hqq(weight, grid))
    assert same(made["kquant"].codes, kquant(weight, grid, power))
    assert same(made["awq"].codes, clip(weight, gram, grid))
    assert same(made["gptq"].codes, gptq(weight, gram, grid).codes)
    # autoround starts from kquant with the inputs' power and makes no row worse
    start = row_errors(weight, made["kquant"].codes, gram)
    assert (row_errors(weight, made["autoround"].codes, gram) <= start * 1.001).all()
    assert made["autoround"].error < made["kquant"].error
    # in the measure of the inputs' power alone, kquant is never worse than rtn
    assert squared_error(weight, made["kquant"].codes, power) <= squared_error(weight, made["rtn"].codes, power)
    for found in made.values():
        assert found.codes.grid == grid and found.fallback is None
        assert np.array_equal(found.codes.scales, grid.stored(found.codes.scales))
        assert found.rtn_error == pytest.approx(made["rtn"].error, rel=1e-6)
    assert [name for name in ALGORITHMS if made[name].damp is not None] == ["gptq", "best"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_errors_told_are_those_of_the_output(algorithm: str) -> None:
    inputs = make_inputs(2, 300, 96)
    weight = make_layer(2, 12, 96)[0]
    found = calibrate(weight, inputs.T @ inputs, GRID, algorithm)
    for codes, told in ((found.codes, found.error), (rtn(weight, GRID), found.rtn_error)):
        missed = inputs @ (weight - dequantize(codes, 96)).T
        assert told == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(inputs @ weight.T), rel=1e-3)


@pytest.mark.parametrize("algorithm", PLAIN)
def test_without_inputs_the_errors_are_those_of_the_weights(algorithm: str) -> None:
    weight = make_layer(3)[0]
    found = calibrate(weight, None, GRID, algorithm)
    assert same(found.codes, {"rtn": rtn, "kquant": kquant, "hqq": hqq}[algorithm](weight, GRID))
    missed = weight - dequantize(found.codes, weight.shape[1])
    assert found.error == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(weight), rel=1e-3)
    assert found.damp is None and found.fallback is None
    assert found.error <= found.rtn_error or algorithm == "hqq"


@pytest.mark.parametrize("algorithm", CALIBRATED)
def test_what_needs_inputs_says_so(algorithm: str) -> None:
    with pytest.raises(ColdpressError, match=f"'{algorithm}' needs the inputs") as caught:
        calibrate(make_layer(4)[0], None, GRID, algorithm)
    assert caught.value.hint is not None and "rtn, kquant, hqq" in caught.value.hint


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(ColdpressError, match="no algorithm 'gtpq'") as caught:
        calibrate(*make_layer(5), GRID, "gtpq")
    assert caught.value.hint == "did you mean 'gptq'?"


@pytest.mark.parametrize("algorithm", CALIBRATED)
def test_few_tokens_are_trusted_as_little_as_shrink_says_and_the_error_is_that_of_all_that_was_seen(
    algorithm: str,
) -> None:
    weight, inputs = make_layer(6, 24, 96)[0], make_inputs(7, 200, 96)
    gram = (inputs.T @ inputs).astype(np.float32)
    found = calibrate(weight, gram, GRID, algorithm, tokens=200)
    trusted = calibrate(weight, shrink(to_torch(gram), 200), GRID, algorithm)
    assert same(found.codes, trusted.codes)
    assert not same(found.codes, calibrate(weight, gram, GRID, algorithm).codes)
    whole = ((weight.astype(np.float64) @ gram) * weight).sum()
    assert found.error == pytest.approx((row_errors(weight, found.codes, gram).sum() / whole) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inputs_of_zeros_leave_a_good_rounding_and_say_so(algorithm: str) -> None:
    weight, gram = make_layer(9)
    found = calibrate(weight, np.zeros_like(gram), GRID, algorithm)
    assert found.error == found.rtn_error == 0
    if algorithm in ("rtn", "hqq"):
        assert found.fallback is None
    else:
        assert found.fallback == "its inputs were all zero"
        assert same(found.codes, kquant(weight, GRID))


@pytest.mark.parametrize("algorithm", ["gptq", "best"])
def test_a_matrix_that_no_damping_helps_is_reported(algorithm: str) -> None:
    weight, gram = make_layer(10, 16, 64)[0], np.full((64, 64), 50, np.float32)
    np.fill_diagonal(gram, 1)
    found = calibrate(weight, gram, GRID, algorithm)
    assert found.fallback is not None and "not positive definite" in found.fallback


@pytest.mark.parametrize("grid", [GRID, Grid(3, 32, True, "float16")], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rows_of_one_value_and_of_none(algorithm: str, grid: Grid) -> None:
    weight, gram = make_layer(11, 6, 64)
    weight[0], weight[1] = 0, 0.5
    values = dequantize(calibrate(weight, gram, grid, algorithm).codes, 64)
    assert not values[0].any() and np.allclose(values[1], 0.5, rtol=1e-2)
    zeros = calibrate(np.zeros_like(weight), gram, grid, algorithm)
    assert zeros.error == 0 and not dequantize(zeros.codes, 64).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_named(algorithm: str, wrong: float) -> None:
    weight, gram = make_layer(12, 4, 64)
    gram[3, 40] = wrong
    with pytest.raises(ColdpressError, match="calibration inputs of a layer are not finite"):
        calibrate(weight, gram, GRID, algorithm)
    weight[2, 2] = wrong
    with pytest.raises(ColdpressError, match="weight to quantize holds values that are not finite"):
        calibrate(weight, make_layer(12, 4, 64)[1], GRID, algorithm)
    with pytest.raises(ColdpressError, match="Gram matrix of shape"):
        calibrate(weight, gram[:32, :32], GRID, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tensors_give_the_codes_of_arrays_and_all_stays_as_it_was(algorithm: str) -> None:
    import torch

    weight, gram = make_layer(13, 12, 96)
    before = weight.copy(), gram.copy()
    weight.setflags(write=False)
    one = calibrate(weight, gram, GRID, algorithm, tokens=500)
    tensors = torch.tensor(weight), torch.tensor(gram)
    other = calibrate(*tensors, GRID, algorithm, tokens=500, device="cpu")
    assert same(one.codes, other.codes) and one.error == pytest.approx(other.error)
    assert np.array_equal(weight, before[0]) and np.array_equal(gram, before[1])
    assert np.array_equal(tensors[1].numpy(), before[1])
    half = calibrate(tensors[0].bfloat16(), tensors[1], GRID, algorithm)
    assert half.codes.codes.shape == one.codes.codes.shape


@pytest.mark.parametrize("algorithm", ["autoround", "best"])
def test_without_time_the_start_is_what_comes_out_or_better(algorithm: str) -> None:
    weight, gram = make_layer(14)
    start = calibrate(weight, gram, GRID, {"autoround": "kquant", "best": "gptq"}[algorithm])
    assert calibrate(weight, gram, GRID, algorithm, seconds=0.0).error <= start.error
    assert calibrate(weight, gram, GRID, "best", sweeps=6).error <= calibrate(weight, gram, GRID, "best").error
