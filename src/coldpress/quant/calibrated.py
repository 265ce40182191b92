"""From the name of an algorithm and what a layer's inputs were to the codes of its weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.quant.clip import clip
from coldpress.quant.gptq import Array, gptq, shrink, squared_outputs, to_numpy, to_torch, trust
from coldpress.quant.grid import Codes, Floats, Grid, check_gram, dequantize, squared_error
from coldpress.quant.hqq import hqq
from coldpress.quant.kquant import kquant
from coldpress.quant.polish import descend, polish
from coldpress.quant.rtn import rtn

if TYPE_CHECKING:
    import torch

#: what works without data, and what only a Gram matrix makes possible
PLAIN = ("rtn", "kquant", "hqq")
CALIBRATED = ("awq", "gptq", "autoround", "best")
ALGORITHMS = (*PLAIN, *CALIBRATED)

_UNSEEN = "its inputs were all zero"


@dataclass
class Calibrated:
    """Codes, and how they came about.

    ``error``, ``rtn_error``: how far the layer's output is off with these codes, and with those of `rtn`, relative to
    the output: ``sqrt(trace(d gram d.T) / trace(w gram w.T))`` with what the codes miss, ``d``; 0.1 is ten percent.
    Without a Gram matrix they are those of the weights, which is the same for unrelated inputs of equal power.
    ``damp``: the share of the inputs' mean power that GPTQ had to add to the diagonal; None where it did not run.
    ``fallback``: why simpler codes stand here than those asked for, or None.
    """

    codes: Codes
    damp: float | None
    fallback: str | None
    error: float
    rtn_error: float


def calibrate(  # noqa: PLR0913
    weight: Array,
    gram: Array | None,
    grid: Grid,
    algorithm: str,
    *,
    tokens: int | None = None,
    seconds: float | None = None,
    sweeps: int = 3,
    device: str | torch.device | None = None,
) -> Calibrated:
    """Quantize ``weight [rows, K]`` for inputs with ``gram [K, K]``, their ``X.T @ X``, by one of `ALGORITHMS`.

    - ``rtn``, ``hqq``: by the weights alone; the Gram matrix only serves to tell the errors.
    - ``kquant``: errors count as much as the power of their input, where there is a Gram matrix.
    - ``awq``: `clip`; the scaling of inputs, if any, is in the weight and in the Gram matrix already.
    - ``gptq``; ``autoround``: `kquant`, then `polish`; ``best``: ``gptq``, then `descend`.

    ``tokens``: how many made the Gram matrix, see `shrink`; None trusts it as it is, and then no row of ``gptq`` and
    ``best`` is worse than with `rtn`. ``seconds`` ends `polish` and `descend` earlier; ``sweeps``: those of `descend`.
    The arrays are numpy's or torch's; ``gptq``, ``autoround`` and ``best`` work on ``device``, or where the weight is.
    Inputs that were all zero leave the codes of `kquant`, for the last four algorithms and for itself, and say so.
    """
    _check_name(algorithm, gram is not None)
    values = to_torch(weight)
    host, values = to_numpy(values), values.to(device or values.device)
    if gram is None:
        codes = _by_weights(algorithm, host, grid)
        missed = [squared_error(host, candidate) for candidate in (codes, rtn(host, grid))]
        return Calibrated(codes, None, None, *_relative(missed, float(np.square(host, dtype=np.float64).sum())))
    power = to_torch(gram, values)
    check_gram(values.shape, power)
    layer = _Layer(values, host, shrink(power, tokens), trust(power, tokens), grid, seconds, sweeps)
    if algorithm in ("rtn", "hqq"):
        found = _Found(_by_weights(algorithm, host, grid))
    elif not bool(power.diagonal().any()):
        found = _Found(kquant(host, grid), fallback=_UNSEEN)
    else:
        found = _BY_GRAM[algorithm](layer)
    return Calibrated(found.codes, found.damp, found.fallback, *_told(layer, found))


def _check_name(algorithm: str, has_gram: bool) -> None:
    if algorithm not in ALGORITHMS:
        raise ColdpressError(f"there is no algorithm '{algorithm}'", hint=did_you_mean(algorithm, ALGORITHMS))
    if not has_gram and algorithm not in PLAIN:
        raise ColdpressError(
            f"'{algorithm}' needs the inputs of the layer, and there is no Gram matrix of them",
            hint=f"give calibration data, or choose {', '.join(PLAIN)}",
        )


def _by_weights(algorithm: str, weight: Floats, grid: Grid) -> Codes:
    return {"rtn": rtn, "kquant": kquant, "hqq": hqq}[algorithm](weight, grid)


@dataclass
class _Layer:
    """A weight ``[rows, K]``, also in the CPU's memory, its inputs, and the limits of the work.

    ``gram``: the Gram matrix as it is trusted, whose values beside the diagonal are ``trust`` times those that were seen.
    """

    values: torch.Tensor
    host: Floats
    gram: torch.Tensor
    trust: float
    grid: Grid
    seconds: float | None
    sweeps: int

    def weighted(self) -> Codes:
        """`kquant` with the power of the inputs."""
        return kquant(self.host, self.grid, to_numpy(self.gram.diagonal()))

    def squared_output(self, weight: torch.Tensor) -> float:
        """The squared output of a weight, as far as the Gram matrix is trusted."""
        return float(squared_outputs(weight, self.gram).sum())

    def seen(self, weight: torch.Tensor, squared_output: float) -> float:
        """From `squared_output` of a weight to that for the inputs as they were seen."""
        if self.trust == 1:
            return squared_output
        alone = float((weight.square() @ self.gram.diagonal()).sum())
        return (squared_output - (1 - self.trust) * alone) / self.trust


@dataclass
class _Found:
    """Codes and how they came about; `squared_output` of what they miss, of what `rtn` misses and of the weight, if known."""

    codes: Codes
    damp: float | None = None
    fallback: str | None = None
    squares: tuple[float, float, float] | None = None


def _kquant(layer: _Layer) -> _Found:
    return _Found(layer.weighted())


def _awq(layer: _Layer) -> _Found:
    return _Found(clip(layer.host, to_numpy(layer.gram), layer.grid))


def _gptq(layer: _Layer) -> _Found:
    found = gptq(layer.values, layer.gram, layer.grid)
    squares = (found.error * found.whole, found.rtn_error * found.whole, found.whole)
    return _Found(found.codes, found.damp, found.fallback, squares)


def _autoround(layer: _Layer) -> _Found:
    return _Found(polish(layer.values, layer.gram, layer.weighted(), seconds=layer.seconds).codes)


def _best(layer: _Layer) -> _Found:
    start = _gptq(layer)
    polished = descend(layer.values, layer.gram, start.codes, sweeps=layer.sweeps, seconds=layer.seconds)
    assert start.squares is not None
    _, rounded, whole = start.squares
    return _Found(polished.codes, start.damp, start.fallback, (polished.after * whole, rounded, whole))


_BY_GRAM: dict[str, Callable[[_Layer], _Found]] = {
    "kquant": _kquant,
    "awq": _awq,
    "gptq": _gptq,
    "autoround": _autoround,
    "best": _best,
}


def _told(layer: _Layer, found: _Found) -> tuple[float, ...]:
    """The relative errors of the output with the codes found and with those of `rtn`."""
    missed = [
        layer.values - to_torch(dequantize(codes, layer.values.shape[1]), layer.values)
        for codes in (found.codes, rtn(layer.host, layer.grid))
    ]
    weights = (*missed, layer.values)
    squares = found.squares or tuple(layer.squared_output(weight) for weight in weights)
    *errors, whole = (layer.seen(weight, square) for weight, square in zip(weights, squares, strict=True))
    return _relative(errors, whole)


def _relative(squares: Sequence[float], whole: float) -> tuple[float, ...]:
    """The roots of some squares over a whole; 0 where the whole is."""
    return tuple((max(square, 0.0) / whole) ** 0.5 if whole > 0 else 0.0 for square in squares)
