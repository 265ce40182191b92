"""AWQ: inputs that carry more power get finer weights, by a scale per input that the layer before takes back.

The method is that of https://arxiv.org/abs/2306.00978: the weights of input k are multiplied by ``s[k]``, the input is
divided by it, and ``s`` is a power of the input's magnitude; how high a power is searched. The loss here needs no
activations: with ``gram = X.T @ X`` the squared error of the output is ``trace(d @ gram @ d.T)``. The magnitude of an
input is its root mean square, which stands on the diagonal. The division costs nothing where it can be folded into
what makes the input: a norm (`fold_norm`), or a linear whose output only gets multiplied on the way (`fold_producer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.quant.grid import Codes, Floats, Grid, check_gram, output_errors
from coldpress.quant.kquant import kquant

#: (weight, grid, importance of the inputs) -> codes
Quantizer = Callable[[Floats, Grid, Floats], Codes]

_COARSE = (0.25, 0.5, 0.75, 1.0)
#: half the distances to the neighbours of the best exponent so far
_FINE = (0.125, 0.0625)
#: no input is scaled by more than this against the geometric mean: halves would lose the small ones
_MOST = 1e3


@dataclass
class Scaling:
    """``scales [K]`` to multiply the weights with, and what they bring.

    ``alpha``: the exponent, 0 where no scaling is better. ``gain``: the share of the output's squared error that is
    gone, 0 to 1. ``by_weight``: whether the magnitude of the weights has a part in the scales.
    """

    scales: Floats
    alpha: float
    gain: float
    by_weight: bool = False


def awq(
    weights: Sequence[Floats],
    gram: Floats | Sequence[Floats],
    grid: Grid,
    quantizer: Quantizer = kquant,
    heads: tuple[int, int] | None = None,
) -> Scaling:
    """Search the scales for ``weights``, each ``[rows, K]``, that share the input with ``gram [K, K]``.

    ``gram``: one for all weights, or one for each where they get different tokens, as experts do. ``heads``: for the
    linear after attention, its query heads and its value heads: inputs that come from the same value share a scale,
    as only such scales can be folded.
    """
    grams = [gram] * len(weights) if isinstance(gram, np.ndarray) else list(gram)
    for weight, own in zip(weights, grams, strict=True):
        check_gram(weight.shape, own)
    inputs = {id(own): np.diag(own) for own in grams}
    power = share_heads(np.sum(list(inputs.values()), axis=0), heads)
    size = share_heads(_mean_magnitude(weights, grid), heads)
    search = _Search(weights, grams, grid, quantizer)
    plain = search.loss(np.ones(len(power), np.float32))
    best = (plain, 0.0, False)
    for by_weight in (False, True):
        best = search.refine(best, power, size if by_weight else None)
    loss, alpha, by_weight = best
    scales = input_scales(power, alpha, size if by_weight else None)
    return Scaling(scales, alpha, 1 - loss / plain if plain > 0 else 0.0, by_weight)


def input_scales(power: Floats, alpha: float, size: Floats | None = None) -> Floats:
    """Scales ``[K]``: the inputs' magnitude to the power ``alpha``, of geometric mean 1; inputs never seen keep theirs.

    ``size [K]``: the magnitude of the weights, which counts against the input's with the power ``1 - alpha``.
    """
    seen = power > 0
    if alpha == 0 or not seen.any():
        return np.ones(len(power), np.float32)
    logs = np.zeros(len(power))
    logs[seen] = alpha / 2 * np.log(power[seen].astype(np.float64))
    if size is not None:
        logs[seen] -= (1 - alpha) * np.log(np.maximum(size[seen], 1e-4))
    logs[seen] -= logs[seen].mean()
    limit = np.log(_MOST)
    return np.exp(np.clip(logs, -limit, limit)).astype(np.float32)


@dataclass
class _Search:
    weights: Sequence[Floats]
    grams: Sequence[Floats]
    grid: Grid
    quantizer: Quantizer

    def loss(self, scales: Floats) -> float:
        """The squared error of the outputs of all weights with these scales; the scales are part of the inputs then."""
        total, last, gram = 0.0, None, self.grams[0]
        for weight, own in zip(self.weights, self.grams, strict=True):
            if own is not last:
                last, gram = own, own / np.outer(scales, scales)
                importance = np.ascontiguousarray(np.diag(gram))
            scaled = weight * scales
            total += float(output_errors(scaled, self.quantizer(scaled, self.grid, importance), gram).sum())
        return total

    def refine(self, best: tuple[float, float, bool], power: Floats, size: Floats | None) -> tuple[float, float, bool]:
        """The best of (loss, alpha, by weight) so far and of exponents from coarse to fine."""
        for alpha in _COARSE:
            best = min(best, (self.loss(input_scales(power, alpha, size)), alpha, size is not None))
        if best[2] != (size is not None):
            return best
        for step in _FINE:
            middle = best[1]
            for alpha in (middle - step, middle + step):
                if 0 < alpha <= 1:
                    best = min(best, (self.loss(input_scales(power, alpha, size)), alpha, size is not None))
        return best


def _mean_magnitude(weights: Sequence[Floats], grid: Grid) -> Floats:
    """The mean magnitude of each column ``[K]``, every weight relative to the largest of its block."""
    total = np.zeros(weights[0].shape[1])
    for weight in weights:
        rows, columns = weight.shape
        padded = np.zeros((rows, grid.blocks(columns) * grid.block_size), np.float32)
        padded[:, :columns] = np.abs(weight)
        blocks = padded.reshape(rows, -1, grid.block_size)
        largest = np.maximum(blocks.max(axis=2, keepdims=True), np.finfo(np.float32).tiny)
        total += (blocks / largest).reshape(rows, -1)[:, :columns].sum(axis=0)
    return (total / sum(len(weight) for weight in weights)).astype(np.float32)


def share_heads(values: Floats, heads: tuple[int, int] | None) -> Floats:
    """``values [query_heads * head_size]`` with the mean over the query heads that read the same value head."""
    if heads is None:
        return np.ascontiguousarray(values)
    queries, shared = heads
    if queries % shared or len(values) % queries:
        raise ColdpressError(f"{queries} query heads and {shared} value heads do not divide {len(values)} inputs")
    grouped = values.reshape(shared, queries // shared, -1)
    return np.broadcast_to(grouped.mean(axis=1, keepdims=True), grouped.shape).reshape(-1)


def scale_inputs(weight: Floats, scales: Floats) -> Floats:
    """``weight [rows, K]`` for an input that has been divided by ``scales [K]``."""
    return weight * scales


def fold_norm(norm: Floats, scales: Floats, offset: float = 0.0) -> Floats:
    """The weight (or bias) ``[K]`` of a norm whose output shall be divided by ``scales [K]``.

    ``offset``: what the network adds to the weight before it multiplies, such as 1 in Gemma.
    """
    return (norm + np.float32(offset)) / scales - np.float32(offset)


def fold_producer(weight: Floats, scales: Floats) -> Floats:
    """The weight ``[K, inputs]``, or the bias ``[K]``, of a linear whose output shall be divided by ``scales [K]``.

    Right for the up projection of a gated network, whose output is only multiplied before the down projection reads
    it; wrong where a function that is not linear lies between.
    """
    return weight / scales.reshape(-1, *[1] * (weight.ndim - 1))


def fold_value(weight: Floats, scales: Floats, heads: tuple[int, int]) -> Floats:
    """The value projection ``[value_heads * head_size, inputs]``, or its bias, for ``scales`` after attention.

    ``scales [query_heads * head_size]`` must be alike for all query heads of a value head, else ColdpressError: the
    attention weighs values over tokens and never mixes the channels of a head, so a scale per value channel commutes.
    """
    queries, shared = heads
    grouped = scales.reshape(shared, queries // shared, -1)
    if not (grouped == grouped[:, :1]).all():
        raise ColdpressError("scales differ between query heads that share a value head, and cannot be folded")
    return fold_producer(weight, grouped[:, 0].reshape(-1))
