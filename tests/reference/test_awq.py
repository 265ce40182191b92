"""Scaling of inputs: folds that leave a network as it is, and a search that finds what helps."""

from __future__ import annotations

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.awq import awq, fold_norm, fold_producer, fold_value, input_scales, scale_inputs, share_heads
from coldpress.quant.grid import Floats, Grid, dequantize
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_scales(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed).lognormal(0, 1, count).astype(np.float32)


def make_layer(columns: int, loud: float) -> tuple[list[Floats], Floats]:
    """Two weights, and the Gram matrix of an input with one channel in 16 much louder than the others."""
    inputs = normal(0, 2000, columns)
    inputs[:, ::16] *= loud
    return [normal(1, 60, columns), normal(2, 20, columns)], inputs.T @ inputs


def slow_loss(weights: list[Floats], gram: Floats, scales: Floats, grid: Grid) -> float:
    """The output's squared error with scales, in float64, seen from the input that is not scaled."""
    total = 0.0
    for weight in weights:
        codes = kquant(weight * scales, grid, np.diag(gram) / scales**2)
        missed = dequantize(codes, weight.shape[1]) / scales.astype(np.float64) - weight
        total += float(((missed @ gram.astype(np.float64)) * missed).sum())
    return total


@pytest.mark.parametrize("grid", [Grid(4, 32, False), Grid(4, 128, True), Grid(2, 32, False)], ids=str)
def test_loud_inputs_get_finer_weights_and_the_gain_is_as_told(grid: Grid) -> None:
    weights, gram = make_layer(200, 20)
    found = awq(weights, gram, grid)
    assert 0 < found.alpha <= 1 and found.gain > 0.03
    assert found.scales[::16].min() > 1.2 * np.median(found.scales)
    before, after = (slow_loss(weights, gram, scales, grid) for scales in (np.ones(200, np.float32), found.scales))
    assert found.gain == pytest.approx(1 - after / before, abs=0.01)


def test_no_exponent_on_a_fine_grid_is_much_better() -> None:
    weights, gram = make_layer(128, 10)
    grid = Grid(4, 64, False)
    found = awq(weights, gram, grid)
    power = np.diag(gram).copy()
    least = min(slow_loss(weights, gram, input_scales(power, alpha), grid) for alpha in np.linspace(0, 1, 33))
    assert slow_loss(weights, gram, found.scales, grid) < 1.02 * least


def test_weights_with_inputs_of_their_own_count_by_these() -> None:
    weights, gram = make_layer(128, 20)
    _, other = make_layer(128, 3)
    grid = Grid(4, 32, False)
    found = awq(weights, [gram, other], grid)
    before, after = (
        sum(slow_loss([weight], own, scales, grid) for weight, own in zip(weights, (gram, other), strict=True))
        for scales in (np.ones(128, np.float32), found.scales)
    )
    assert found.gain == pytest.approx(1 - after / before, abs=0.01)
    assert np.array_equal(awq(weights, [gram, gram], grid).scales, awq(weights, gram, grid).scales)


def test_without_a_gain_nothing_is_scaled() -> None:
    weights, gram = make_layer(64, 1)
    found = awq(weights, np.diag(np.full(64, 3.0)).astype(np.float32), Grid(8, 32, False))
    assert found.gain >= 0
    nothing = awq(weights, np.zeros_like(gram), Grid(4, 32, False))
    assert nothing.alpha == 0 and nothing.gain == 0 and np.array_equal(nothing.scales, np.ones(64))


def test_the_quantizer_is_the_one_that_was_asked_for() -> None:
    weights, gram = make_layer(128, 20)
    found = awq(weights, gram, Grid(4, 32, False), lambda weight, grid, importance: rtn(weight, grid))
    assert found.gain > 0.1


def test_scales_have_a_mean_of_one_and_spare_inputs_never_seen() -> None:
    power = make_scales(0, 50) ** 2
    power[7] = 0
    scales = input_scales(power, 0.5)
    assert scales[7] == 1
    assert np.log(np.delete(scales, 7)).mean() == pytest.approx(0, abs=1e-5)
    assert np.allclose(scales[3] / scales[4], (power[3] / power[4]) ** 0.25)
    assert np.isfinite(input_scales(np.array([1e-30, 1, 1e30], np.float32), 1.0)).all()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_fold_into_a_norm_leaves_the_network_as_it_is(offset: float) -> None:
    stream, norm, bias, scales = normal(3, 10, 48), normal(4, 48), normal(5, 48), make_scales(6, 48)
    consumers = [normal(7, 30, 48), normal(8, 20, 48)]

    def outputs(norm: Floats, bias: Floats, weights: list[Floats]) -> list[Floats]:
        normed = stream / np.sqrt(np.square(stream).mean(axis=1, keepdims=True)) * (offset + norm) + bias
        return [normed @ weight.T for weight in weights]

    folded = fold_norm(norm, scales, offset), fold_norm(bias, scales)
    scaled = outputs(*folded, [scale_inputs(weight, scales) for weight in consumers])
    for before, after in zip(outputs(norm, bias, consumers), scaled, strict=True):
        assert np.allclose(before, after, rtol=1e-4, atol=1e-4)


def test_a_fold_into_the_up_projection_leaves_the_network_as_it_is() -> None:
    inputs, gate, up, bias, down = (
        normal(9, 10, 24),
        normal(10, 64, 24),
        normal(11, 64, 24),
        normal(12, 64),
        normal(13, 24, 64),
    )
    scales = make_scales(14, 64)

    def output(up: Floats, bias: Floats, down: Floats) -> Floats:
        gated = inputs @ gate.T
        return (gated / (1 + np.exp(-gated)) * (inputs @ up.T + bias)) @ down.T

    scaled = output(fold_producer(up, scales), fold_producer(bias, scales), scale_inputs(down, scales))
    assert np.allclose(output(up, bias, down), scaled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("heads", [(6, 6), (6, 2), (6, 1)])
def test_a_fold_into_the_values_leaves_attention_as_it_is(heads: tuple[int, int]) -> None:
    queries, shared = heads
    inputs, value, bias = normal(15, 12, 24), normal(16, shared * 8, 24), normal(17, shared * 8)
    output, attention = normal(18, 24, queries * 8), np.abs(normal(19, queries, 12, 12))
    scales = share_heads(make_scales(20, queries * 8), heads)

    def outputs(value: Floats, bias: Floats, output: Floats) -> Floats:
        values = (inputs @ value.T + bias).reshape(12, shared, 8)
        values = np.repeat(values, queries // shared, axis=1)
        return np.einsum("hts,shd->thd", attention, values).reshape(12, -1) @ output.T

    scaled = outputs(fold_value(value, scales, heads), fold_value(bias, scales, heads), scale_inputs(output, scales))
    assert np.allclose(outputs(value, bias, output), scaled, rtol=1e-3, atol=1e-3)


def test_the_search_for_the_output_of_attention_shares_scales_among_heads() -> None:
    weights, gram = make_layer(96, 20)
    found = awq(weights, gram, Grid(4, 32, False), heads=(6, 2))
    grouped = found.scales.reshape(2, 3, 16)
    assert (grouped == grouped[:, :1]).all()
    assert found.gain > 0.1


def test_what_does_not_fit_is_refused() -> None:
    weights, gram = make_layer(96, 2)
    with pytest.raises(ColdpressError, match="differ between query heads"):
        fold_value(weights[0], make_scales(21, 96), (6, 2))
    with pytest.raises(ColdpressError, match="5 query heads"):
        awq(weights, gram, Grid(4, 32, False), heads=(5, 5))
    with pytest.raises(ColdpressError, match="Gram matrix"):
        awq(weights, gram[:64, :64], Grid(4, 32, False))
    for wrong in (np.nan, np.inf, -np.inf):
        gram[5, 6] = wrong
        with pytest.raises(ColdpressError, match="not finite"):
            awq(weights, gram, Grid(4, 32, False))


def test_rows_of_zeros_are_scaled_like_others() -> None:
    weights, gram = make_layer(96, 20)
    weights[0][:10] = 0
    found = awq(weights, gram, Grid(3, 32, False))
    assert np.isfinite(found.scales).all() and found.gain > 0
