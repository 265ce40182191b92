"""Polish: never worse, exact where the exact answer is known, and at a minimum where it says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.gptq import gptq
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.kquant import kquant
from coldpress.quant.polish import Polished, descend, polish
from coldpress.quant.rtn import rtn

HALVES = ("float16", "bfloat16")
GRIDS = [Grid(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (32, 128) for symmetric in (True, False)]
NARROW = [Grid(bits, 32, symmetric, kind) for bits in (3, 8) for symmetric in (True, False) for kind in HALVES]
WAYS = [polish, descend]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Layers this small are slower with more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_layer(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight and the Gram matrix of inputs that go together."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((4 * columns, columns // 4)) @ random.standard_normal((columns // 4, columns))
    inputs = (inputs + random.standard_normal(inputs.shape)) * random.lognormal(0, 0.7, columns)
    return random.standard_normal((rows, columns)).astype(np.float32), (inputs.T @ inputs).astype(np.float32)


def row_errors(weight: np.ndarray, codes: Codes, gram: np.ndarray) -> np.ndarray:
    missed = weight.astype(np.float64) - dequantize(codes, weight.shape[1])
    return ((missed @ gram.astype(np.float64)) * missed).sum(axis=1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grid", [*GRIDS, *NARROW], ids=str)
def test_no_row_is_worse_than_it_was(way: Callable[..., Polished], grid: Grid) -> None:
    weight, gram = make_layer(0, 40, 150)
    for start in (rtn(weight, grid), gptq(weight, gram, grid).codes):
        result = way(weight, gram, start)
        assert (row_errors(weight, result.codes, gram) <= row_errors(weight, start, gram) * 1.001).all()
        assert result.after <= result.before
        assert result.codes.codes.max() <= grid.top
        assert not dequantize(result.codes, result.codes.codes[0].size)[:, 150:].any()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_far_from_gptq_both_gain_much_and_near_it_descent_still_does(grid: Grid) -> None:
    weight, gram = make_layer(1, 40, 128)
    start, better = kquant(weight, grid), gptq(weight, gram, grid).codes
    assert all(result.after < 0.75 * result.before for result in (way(weight, gram, start) for way in WAYS))
    near = descend(weight, gram, better)
    assert near.after < 0.99 * near.before


@pytest.mark.parametrize("way", WAYS)
def test_the_errors_told_are_those_of_the_output(way: Callable[..., Polished]) -> None:
    weight, gram = make_layer(2, 20, 96)
    start = kquant(weight, Grid(4, 32, False))
    result = way(weight, gram, start)
    whole = ((weight.astype(np.float64) @ gram) * weight).sum()
    assert result.before == pytest.approx(row_errors(weight, start, gram).sum() / whole, rel=1e-3)
    assert result.after == pytest.approx(row_errors(weight, result.codes, gram).sum() / whole, rel=1e-3)


@pytest.mark.parametrize("grid", [Grid(4, 32, False), Grid(2, 32, True)], ids=str)
def test_descent_ends_where_no_single_code_can_be_better(grid: Grid) -> None:
    weight, gram = make_layer(3, 6, 64)
    found = descend(weight, gram, rtn(weight, grid), sweeps=50, scales=False).codes
    least = row_errors(weight, found, gram)
    for place in np.ndindex(2, 32):
        for code in range(grid.top + 1):
            other = Codes(found.codes.copy(), found.scales, found.zero_points, grid)
            other.codes[:, place[0], place[1]] = code
            assert (row_errors(weight, other, gram) >= least * (1 - 1e-4)).all()


def test_one_sweep_is_the_slow_loop() -> None:
    weight, gram = (array.astype(np.float64) for array in make_layer(4, 10, 96))
    grid = Grid(4, 32, False)
    start = rtn(weight, grid)
    assert start.zero_points is not None
    scales, zeros = (np.repeat(array.astype(np.float64), 32, axis=1) for array in (start.scales, start.zero_points))
    codes = start.codes.reshape(10, 96).astype(np.float64)
    for column in np.argsort(-np.diag(gram), kind="stable"):
        missed = scales * (codes - zeros) - weight
        aim = scales[:, column] * (codes[:, column] - zeros[:, column])
        aim -= missed @ gram[:, column] / gram[column, column]
        codes[:, column] = np.clip(np.round(aim / scales[:, column]) + zeros[:, column], 0, 15)
    found = descend(weight, gram, start, sweeps=1, scales=False).codes
    assert np.array_equal(found.codes.reshape(10, 96), codes)
    assert np.array_equal(found.scales, start.scales)


def test_the_scale_of_a_single_block_is_the_least_squares_one() -> None:
    weight, gram = make_layer(5, 10, 32)
    start = rtn(weight, Grid(4, 32, True))
    found = polish(weight, gram, start, steps=0).codes
    steps = start.codes[:, 0].astype(np.float64) - 8
    exact = ((weight @ gram) * steps).sum(axis=1) / ((steps @ gram) * steps).sum(axis=1)
    assert np.allclose(found.scales[:, 0], exact, rtol=1e-3)
    assert np.array_equal(found.codes, start.codes)


@pytest.mark.parametrize("way", WAYS)
def test_the_start_and_the_zero_points_stay_as_they_are(way: Callable[..., Polished]) -> None:
    weight, gram = make_layer(6, 20, 64)
    start = kquant(weight, Grid(4, 32, False))
    codes, scales = start.codes.copy(), start.scales.copy()
    result = way(weight, gram, start)
    assert np.array_equal(start.codes, codes) and np.array_equal(start.scales, scales)
    assert np.array_equal(result.codes.zero_points, start.zero_points)
    assert not np.array_equal(result.codes.codes, codes)


@pytest.mark.parametrize("way", WAYS)
def test_without_time_nothing_gets_worse(way: Callable[..., Polished]) -> None:
    weight, gram = make_layer(7, 20, 64)
    result = way(weight, gram, kquant(weight, Grid(4, 32, False)), seconds=0.0)
    assert result.after <= result.before


@pytest.mark.parametrize("way", WAYS)
def test_inputs_that_were_never_seen_keep_their_codes_and_scales(way: Callable[..., Polished]) -> None:
    weight, gram = make_layer(8, 20, 64)
    gram[:32], gram[:, :32] = 0, 0
    start = kquant(weight, Grid(4, 32, False))
    result = way(weight, gram, start)
    assert np.array_equal(result.codes.codes[:, 0], start.codes[:, 0])
    assert np.array_equal(result.codes.scales[:, 0], start.scales[:, 0])


def test_rows_do_not_depend_on_those_beside_them() -> None:
    weight, gram = make_layer(9, 70_000, 64)
    start = rtn(weight, Grid(4, 32, True))
    last = Codes(start.codes[-5:], start.scales[-5:], None, start.grid)
    whole, part = (descend(*given, sweeps=1).codes for given in ((weight, gram, start), (weight[-5:], gram, last)))
    assert (whole.codes[-5:] == part.codes).mean() > 0.99
    assert np.allclose(whole.scales[-5:], part.scales, rtol=0.02)


@pytest.mark.parametrize("way", WAYS)
def test_tensors_give_the_codes_of_arrays(way: Callable[..., Polished]) -> None:
    import torch

    weight, gram = make_layer(10, 12, 96)
    start = kquant(weight, Grid(4, 32, False))
    one, other = way(weight, gram, start), way(torch.tensor(weight), torch.tensor(gram), start)
    assert np.array_equal(one.codes.codes, other.codes.codes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grid", NARROW, ids=str)
def test_scales_are_fitted_and_stay_on_their_type(way: Callable[..., Polished], grid: Grid) -> None:
    weight, gram = make_layer(11, 20, 96)
    start = rtn(weight, grid)
    found = way(weight, gram, start).codes
    assert found.grid == grid
    assert np.array_equal(found.scales, grid.stored(found.scales))
    assert not np.array_equal(found.scales, start.scales)
    single = way(weight, gram, rtn(weight, Grid(grid.bits, 32, grid.symmetric)))
    errors, least = (row_errors(weight, codes, gram).sum() for codes in (found, single.codes))
    assert errors < (1.5 if grid.bits == 8 else 1.1) * least


@pytest.mark.parametrize("kind", HALVES)
def test_the_scale_of_a_single_block_is_the_best_that_its_type_holds(kind: str) -> None:
    weight, gram = make_layer(12, 10, 32)
    grid = Grid(4, 32, True, kind)
    found = polish(weight, gram, rtn(weight, grid), steps=0).codes
    least = row_errors(weight, found, gram)
    for digit in (-1, 1):
        bits = found.scales.view(np.int32) + digit * (1 << {"float16": 13, "bfloat16": 16}[kind])
        other = Codes(found.codes, bits.view(np.float32), None, grid)
        assert (row_errors(weight, other, gram) >= least).all()


@pytest.mark.parametrize("way", WAYS)
def test_scales_do_not_leave_the_range_of_float16(way: Callable[..., Polished]) -> None:
    weight, gram = make_layer(13, 10, 64)
    weight[:] *= np.float32(2.0**-14 * 8 * 1.01 / np.abs(weight).reshape(10, 2, 32).max(axis=2).min())
    weight[4] = 0
    found = way(weight, gram, rtn(weight, Grid(4, 32, True, "float16"))).codes
    assert (np.abs(found.scales) >= 2.0**-14).all() and not dequantize(found, 64)[4].any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grid", [Grid(4, 32, False), Grid(3, 32, True, "bfloat16")], ids=str)
def test_rows_of_one_value_and_inputs_of_zeros_do_no_harm(way: Callable[..., Polished], grid: Grid) -> None:
    weight, gram = make_layer(14, 6, 64)
    weight[0], weight[1] = 0, 0.5
    start = kquant(weight, grid)
    found = way(weight, gram, start).codes
    assert not dequantize(found, 64)[0].any() and np.allclose(dequantize(found, 64)[1], 0.5, rtol=1e-2)
    unseen = way(weight, np.zeros_like(gram), start)
    assert np.array_equal(unseen.codes.codes, start.codes) and np.array_equal(unseen.codes.scales, start.scales)
    assert unseen.before == unseen.after == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_gram_matrix_must_be_finite(way: Callable[..., Polished], wrong: float) -> None:
    weight, gram = make_layer(15, 4, 64)
    gram[3, 40] = wrong
    with pytest.raises(ColdpressError, match="not finite"):
        way(weight, gram, rtn(weight, Grid(4, 32, True)))
