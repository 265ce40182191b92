"""From the name of an algorithm and what a layer's inputs were to the codes of its weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.quant.clip import clip
from coldpress.quant.gptq import Array, gptq, output_error_rows, shrink, to_numpy, to_torch
from coldpress.quant.grid import Codes, Floats, Grid, check_gram
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
        return Calibrated(codes, None, None, *_told(values, None, codes, rtn(host, grid)))
    power = to_torch(gram, values)
    check_gram(values.shape, power)
    layer = _Layer(values, host, shrink(power, tokens), grid, seconds, sweeps)
    if algorithm in ("rtn", "hqq"):
        found = _Found(_by_weights(algorithm, host, grid))
    elif not bool(power.diagonal().any()):
        found = _Found(kquant(host, grid), fallback=_UNSEEN)
    else:
        found = _BY_GRAM[algorithm](layer)
    return Calibrated(found.codes, found.damp, found.fallback, *_told(values, power, found.codes, rtn(host, grid)))


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
    """A weight ``[rows, K]``, also in the CPU's memory, the Gram matrix to trust, and the limits of the work."""

    values: torch.Tensor
    host: Floats
    gram: torch.Tensor
    grid: Grid
    seconds: float | None
    sweeps: int

    def weighted(self) -> Codes:
        """`kquant` with the power of the inputs."""
        return kquant(self.host, self.grid, to_numpy(self.gram.diagonal()))


@dataclass
class _Found:
    codes: Codes
    damp: float | None = None
    fallback: str | None = None


def _kquant(layer: _Layer) -> _Found:
    return _Found(layer.weighted())


def _awq(layer: _Layer) -> _Found:
    return _Found(clip(layer.host, to_numpy(layer.gram), layer.grid))


def _gptq(layer: _Layer) -> _Found:
    found = gptq(layer.values, layer.gram, layer.grid)
    return _Found(found.codes, found.damp, found.fallback)


def _autoround(layer: _Layer) -> _Found:
    return _Found(polish(layer.values, layer.gram, layer.weighted(), seconds=layer.seconds).codes)


def _best(layer: _Layer) -> _Found:
    start = _gptq(layer)
    polished = descend(layer.values, layer.gram, start.codes, sweeps=layer.sweeps, seconds=layer.seconds)
    return _Found(polished.codes, start.damp, start.fallback)


_BY_GRAM: dict[str, Callable[[_Layer], _Found]] = {
    "kquant": _kquant,
    "awq": _awq,
    "gptq": _gptq,
    "autoround": _autoround,
    "best": _best,
}


def _told(values: torch.Tensor, gram: torch.Tensor | None, *candidates: Codes) -> tuple[float, ...]:
    """The relative error of the output with each of the ``candidates``; 0 for an output of zeros."""
    import torch

    measure = torch.eye(values.shape[1]).to(values) if gram is None else gram
    whole = float(torch.einsum("rk,rk->", values @ measure, values))
    if whole <= 0:
        return tuple(0.0 for _ in candidates)
    errors = (float(output_error_rows(values, codes, measure).sum()) for codes in candidates)
    return tuple(max(error, 0.0) ** 0.5 / whole**0.5 for error in errors)
