"""GPTQ against a textbook loop over the columns in float64, and what must hold for any layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.gptq import gptq
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn

GRIDS = [Grid(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (16, 32, 128) for symmetric in (True, False)]

#: at 8 bits the grids themselves are close calls, which the last digit of an importance decides
TEXTBOOK_GRIDS = [Grid(4, 32, False), Grid(4, 32, True), Grid(2, 128, False), Grid(3, 32, False), Grid(3, 64, True)]
TEXTBOOK_GRIDS += [Grid(3, 32, True, "float16"), Grid(4, 32, False, "bfloat16")]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Layers this small are slower with more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_inputs(seed: int, tokens: int, columns: int) -> np.ndarray:
    """Inputs ``[tokens, columns]`` of uneven power that go together, as those of real layers do."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(100 + columns).standard_normal((columns // 4, columns))
    power = np.random.default_rng(200 + columns).lognormal(0, 0.7, columns)
    return (random.standard_normal((tokens, columns // 4)) @ mix + random.standard_normal((tokens, columns))) * power


def make_layer(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight and the Gram matrix of its inputs, in float32."""
    inputs = make_inputs(seed, 8 * columns, columns)
    weight = np.random.default_rng(seed + 1).standard_normal((rows, columns))
    return weight.astype(np.float32), (inputs.T @ inputs).astype(np.float32)


def row_errors(weight: np.ndarray, codes: Codes, gram: np.ndarray) -> np.ndarray:
    missed = weight.astype(np.float64) - dequantize(codes, weight.shape[1])
    return ((missed @ gram.astype(np.float64)) * missed).sum(axis=1)


def textbook(weight: np.ndarray, gram: np.ndarray, grid: Grid, act_order: bool) -> np.ndarray:
    """Codes ``[rows, K]``: invert, factor the inverse, round a column, correct all that follow, take the next."""
    columns = weight.shape[1]
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else np.arange(columns)
    damped = gram + 0.01 * np.diag(gram).mean() * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    importance = np.empty(columns)
    importance[order] = np.diag(upper) ** -2.0
    grids = kquant(weight, grid, importance.astype(np.float32), quick=True)
    scales = np.repeat(grids.scales.astype(np.float64), grid.block_size, axis=1)
    zeros = np.full_like(scales, grid.middle)
    if grids.zero_points is not None:
        zeros = np.repeat(grids.zero_points, grid.block_size, axis=1)
    rest, codes = weight.copy(), np.empty(weight.shape, int)
    for place, column in enumerate(order):
        scale, zero = scales[:, column], zeros[:, column]
        codes[:, column] = np.clip(np.round(rest[:, column] / scale) + zero, 0, grid.top)
        missed = (rest[:, column] - scale * (codes[:, column] - zero)) / upper[place, place]
        rest[:, order[place:]] -= np.outer(missed, upper[place, place:])
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("columns", [100, 160])
@pytest.mark.parametrize("grid", TEXTBOOK_GRIDS, ids=str)
def test_gptq_is_the_textbook_loop(grid: Grid, columns: int, act_order: bool) -> None:
    weight, gram = (array.astype(np.float64) for array in make_layer(0, 24, columns))
    result = gptq(weight, gram, grid, act_order=act_order)
    found = result.codes.codes.reshape(24, -1)[:, :columns]
    same = (found == textbook(weight, gram, grid, act_order)).all(axis=1)
    # in the few other rows, plain rounding happens to be better
    assert result.kept > 0.9
    assert same.mean() == pytest.approx(result.kept)


def test_single_precision_is_as_good_as_double() -> None:
    weight, gram = make_layer(1, 64, 256)
    single = gptq(weight, gram, Grid(4, 32, False))
    double = gptq(weight.astype(np.float64), gram.astype(np.float64), Grid(4, 32, False))
    assert single.error == pytest.approx(double.error, rel=0.01)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_correlated_inputs_leave_much_less_error_than_rounding_to_nearest(grid: Grid) -> None:
    weight, gram = make_layer(2, 32, 256)
    result = gptq(weight, gram, grid)
    assert result.fallback is None
    assert result.error < 0.7 * result.rtn_error


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("tokens", [5, 2000])
def test_no_row_is_worse_than_without_gptq(grid: Grid, tokens: int) -> None:
    weight, _ = make_layer(3, 60, 150)
    inputs = np.random.default_rng(4).standard_t(3, (tokens, 150))
    gram = (inputs.T @ inputs).astype(np.float32)
    found = row_errors(weight, gptq(weight, gram, grid).codes, gram)
    assert (found <= row_errors(weight, rtn(weight, grid), gram) * 1.001).all()


def test_the_errors_told_are_those_of_the_output() -> None:
    inputs = make_inputs(5, 300, 64)
    weight, grid = make_layer(5, 20, 64)[0], Grid(4, 32, True)
    result = gptq(weight, inputs.T @ inputs, grid)
    whole = np.square(inputs @ weight.T).sum()
    for codes, told in ((result.codes, result.error), (rtn(weight, grid), result.rtn_error)):
        missed = np.square(inputs @ (weight - dequantize(codes, 64)).T).sum()
        assert told == pytest.approx(missed / whole, rel=1e-3)


@pytest.mark.parametrize("columns", [64, 450])
def test_damping_raises_itself_until_the_matrix_can_be_factored(columns: int) -> None:
    weight, _ = make_layer(6, 16, columns)
    inputs = np.random.default_rng(6).standard_normal((columns // 6, columns))
    result = gptq(weight, (inputs.T @ inputs).astype(np.float32), Grid(4, 32, False), damp=0)
    assert result.fallback is None
    assert 0 < result.damp < 0.1
    assert result.error < result.rtn_error


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_row_is_rounded_as_if_it_were_alone(symmetric: bool) -> None:
    weight, gram = make_layer(16, 2500, 100)
    grid = Grid(4, 32, symmetric)
    whole, parts = gptq(weight, gram, grid), [gptq(part, gram, grid) for part in np.split(weight, [10, 400])]
    for name in ("codes", "scales") if symmetric else ("codes", "scales", "zero_points"):
        together = np.concatenate([getattr(part.codes, name) for part in parts])
        # sums of another length end with other last digits, which decide close calls
        assert (getattr(whole.codes, name) == together).mean() > 0.999
    assert np.allclose(whole.squares, np.concatenate([part.squares for part in parts], axis=1), rtol=0.02)


def test_a_matrix_that_no_damping_helps_leaves_the_search_and_says_so() -> None:
    weight, grid = make_layer(7, 16, 64)[0], Grid(4, 32, False)
    gram = np.full((64, 64), 50, np.float32)
    np.fill_diagonal(gram, 1)
    result = gptq(weight, gram, grid)
    assert result.fallback is not None and "not positive definite" in result.fallback
    assert result.damp == 1 and result.kept == 0


def test_inputs_that_were_never_seen() -> None:
    weight, gram = make_layer(8, 16, 96)
    gram[40:70], gram[:, 40:70] = 0, 0
    result = gptq(weight, gram, Grid(4, 32, False), damp=0)
    assert result.fallback is None and result.error < 0.7 * result.rtn_error
    missed = weight - dequantize(result.codes, 96)
    # such an input may come up later: its weights are rounded, not dropped
    assert np.abs(missed[:, 40:70]).mean() < 0.2 * np.abs(weight[:, 40:70]).mean()
    nothing = gptq(weight, np.zeros_like(gram), Grid(4, 32, False))
    assert nothing.fallback == "its inputs were all zero"
    assert np.array_equal(nothing.codes.codes, kquant(weight, Grid(4, 32, False)).codes)


def test_few_tokens_are_trusted_less() -> None:
    random = np.random.default_rng(9)
    weight, mix = random.standard_normal((64, 256)).astype(np.float32), random.standard_normal((4, 256))
    few, many = (random.standard_normal((tokens, 4)) @ mix for tokens in (256, 8000))
    few, many = (inputs + 2 * random.standard_normal(inputs.shape) for inputs in (few, many))
    gram, wide = ((inputs.T @ inputs).astype(np.float32) for inputs in (few, many))
    blind, careful = (gptq(weight, gram, Grid(4, 32, False), tokens=tokens) for tokens in (None, 256))
    assert row_errors(weight, careful.codes, wide).sum() < 0.9 * row_errors(weight, blind.codes, wide).sum()
    assert row_errors(weight, blind.codes, gram).sum() < row_errors(weight, careful.codes, gram).sum()


def test_padding_dequantizes_to_zero() -> None:
    weight, gram = make_layer(11, 8, 100)
    for symmetric in (True, False):
        codes = gptq(weight, gram, Grid(4, 64, symmetric)).codes
        assert codes.codes.shape == (8, 2, 64)
        assert not dequantize(codes, 128)[:, 100:].any()


def test_rows_of_one_value_and_of_none() -> None:
    weight, gram = make_layer(12, 4, 64)
    weight[0], weight[1] = 0, 0.5
    result = gptq(weight, gram, Grid(4, 32, False))
    assert not dequantize(result.codes, 64)[0].any()
    assert np.allclose(dequantize(result.codes, 64)[1], 0.5)


def test_tensors_give_the_codes_of_arrays_and_stay_as_they_are() -> None:
    import torch

    weight, gram = make_layer(13, 16, 96)
    weight.setflags(write=False)
    before = gram.copy()
    one = gptq(weight, gram, Grid(4, 32, False), tokens=500)
    other = gptq(torch.tensor(weight), torch.tensor(gram), Grid(4, 32, False), tokens=500)
    assert np.array_equal(one.codes.codes, other.codes.codes)
    assert np.array_equal(gram, before)


def test_a_gram_matrix_must_be_finite_and_fit() -> None:
    weight, gram = make_layer(14, 4, 64)
    with pytest.raises(ColdpressError, match="Gram matrix of shape"):
        gptq(weight, gram[:32, :32], Grid(4, 32, False))
    with pytest.raises(ColdpressError, match="Gram matrix of shape"):
        gptq(weight[0], gram, Grid(4, 32, False))
    for wrong in (np.nan, np.inf, -np.inf):
        gram[3, 3] = wrong
        with pytest.raises(ColdpressError, match="not finite"):
            gptq(weight, gram, Grid(4, 32, False))
    gram[3, 3] = -1
    with pytest.raises(ColdpressError, match="negative"):
        gptq(weight, gram, Grid(4, 32, False))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [3, 8])
def test_codes_are_chosen_for_the_stored_scales(bits: int, kind: str) -> None:
    weight, gram = make_layer(15, 24, 128)
    grid = Grid(bits, 32, False, kind)
    result, single = gptq(weight, gram, grid), gptq(weight, gram, Grid(bits, 32, False))
    assert np.array_equal(result.codes.scales, grid.stored(result.codes.scales))
    assert result.error < 1.3 * single.error
    assert (row_errors(weight, result.codes, gram) <= row_errors(weight, rtn(weight, grid), gram) * 1.001).all()
