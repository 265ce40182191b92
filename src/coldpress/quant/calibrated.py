"""From the name of an algorithm and what a layer's inputs were to the codes of its weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.quant.clip import clip
from coldpress.quant.gptq import Array, Inputs, gptq, missed_by, shrink, to_numpy, to_torch
from coldpress.quant.grid import Codes, Floats, Grid, check_gram, dequantize
from coldpress.quant.hqq import hqq
from coldpress.quant.kquant import kquant
from coldpress.quant.lattice import on_lattice
from coldpress.quant.polish import descend, polish
from coldpress.quant.rtn import rtn

if TYPE_CHECKING:
    import torch

Squares: TypeAlias = NDArray[np.float64]

#: what works without data, and what only a Gram matrix makes possible
PLAIN = ("rtn", "kquant", "hqq")
CALIBRATED = ("awq", "gptq", "autoround", "best")
ALGORITHMS = (*PLAIN, *CALIBRATED)

_UNSEEN = "its inputs were all zero"


@dataclass
class Calibrated:
    """Codes, and how they came about.

    ``damp``: the share of the inputs' mean power that GPTQ had to add to the diagonal; None where it did not run.
    ``fallback``: why simpler codes stand here than those asked for, or None. ``squares`` float64 ``[3, rows]``: for
    each row the squared output of what these codes miss, of what `rtn` misses, and of the weight; without a Gram matrix
    those of the weights, which is the same for unrelated inputs of equal power. ``on_lattice``: the weights lay on the
    grid already, and these are their codes.
    """

    codes: Codes
    damp: float | None
    fallback: str | None
    squares: Squares
    on_lattice: bool = False

    @property
    def error(self) -> float:
        """How far the layer's output is off, relative to the output: 0.1 is ten percent.

        That is ``sqrt(trace(d gram d.T) / trace(w gram w.T))`` with what the codes miss, ``d``.
        """
        return self._relative(0)

    @property
    def rtn_error(self) -> float:
        """The same with the codes of `rtn`."""
        return self._relative(1)

    def _relative(self, place: int) -> float:
        whole = float(self.squares[2].sum())
        return float(max(self.squares[place].sum(), 0.0) / whole) ** 0.5 if whole > 0 else 0.0

    def rows(self, some: slice) -> Calibrated:
        """Those of some rows."""
        own = self.codes
        zeros = None if own.zero_points is None else own.zero_points[some]
        codes = Codes(own.codes[some], own.scales[some], zeros, own.grid)
        return Calibrated(codes, self.damp, self.fallback, self.squares[:, some], self.on_lattice)


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
    Weights that lie on such a grid keep their codes, whatever the algorithm.
    """
    _check_name(algorithm, gram is not None)
    values = to_torch(weight)
    host, values = to_numpy(values), values.to(device or values.device)
    kept = on_lattice(host, grid)
    if gram is None:
        codes = kept or _by_weights(algorithm, host, grid)
        return Calibrated(codes, None, None, _squares_of_weights(host, codes), kept is not None)
    power = to_torch(gram, values)
    check_gram(values.shape, power)
    layer = _Layer(values, host, Inputs.of(power, tokens), tokens, grid, seconds, sweeps)
    if kept is not None:
        found = _Found(kept)
    elif algorithm in ("rtn", "hqq"):
        found = _Found(_by_weights(algorithm, host, grid))
    elif not bool(power.diagonal().any()):
        found = _Found(kquant(host, grid), fallback=_UNSEEN)
    else:
        found = _BY_GRAM[algorithm](layer)
    squares = _told(layer, found, algorithm == "rtn")
    return Calibrated(found.codes, found.damp, found.fallback, squares, kept is not None)


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


def _squares_of_weights(weight: Floats, codes: Codes) -> Squares:
    missed = [weight - dequantize(own, weight.shape[1]) for own in (codes, rtn(weight, codes.grid))]
    return np.stack([np.einsum("rk,rk->r", own, own, dtype=np.float64) for own in (*missed, weight)])


@dataclass
class _Layer:
    """A weight ``[rows, K]``, also in the CPU's memory, its inputs, and the limits of the work."""

    values: torch.Tensor
    host: Floats
    inputs: Inputs
    tokens: int | None
    grid: Grid
    seconds: float | None
    sweeps: int

    @cached_property
    def gram(self) -> torch.Tensor:
        """The Gram matrix as it is trusted."""
        return shrink(self.inputs.gram, self.tokens)

    def weighted(self) -> Codes:
        """`kquant` with the power of the inputs."""
        return kquant(self.host, self.grid, to_numpy(self.inputs.power))

    def squares(self, codes: Codes) -> Squares:
        """The squared output of what codes miss, for each row."""
        return self.inputs.seen(missed_by(self.values, codes).T).double().cpu().numpy()


@dataclass
class _Found:
    """Codes and how they came about; the squares of `GptqResult`, if known."""

    codes: Codes
    damp: float | None = None
    fallback: str | None = None
    squares: Squares | None = None


def _kquant(layer: _Layer) -> _Found:
    return _Found(layer.weighted())


def _awq(layer: _Layer) -> _Found:
    return _Found(clip(layer.host, to_numpy(layer.gram), layer.grid))


def _gptq(layer: _Layer) -> _Found:
    found = gptq(layer.values, layer.inputs.gram, layer.grid, tokens=layer.tokens)
    return _Found(found.codes, found.damp, found.fallback, found.squares)


def _autoround(layer: _Layer) -> _Found:
    return _Found(polish(layer.values, layer.gram, layer.weighted(), seconds=layer.seconds).codes)


def _best(layer: _Layer) -> _Found:
    start = _gptq(layer)
    polished = descend(layer.values, layer.gram, start.codes, sweeps=layer.sweeps, seconds=layer.seconds)
    assert start.squares is not None
    squares = np.stack([layer.squares(polished.codes), *start.squares[1:]])
    return _Found(polished.codes, start.damp, start.fallback, squares)


_BY_GRAM: dict[str, Callable[[_Layer], _Found]] = {
    "kquant": _kquant,
    "awq": _awq,
    "gptq": _gptq,
    "autoround": _autoround,
    "best": _best,
}


def _told(layer: _Layer, found: _Found, is_rtn: bool) -> Squares:
    """The squared outputs of what the codes found miss, of what `rtn` misses, and of the weight."""
    if found.squares is not None:
        return found.squares
    whole, other = (
        layer.inputs.seen(own.T, roughly=True).double().cpu().numpy()
        for own in (layer.values, missed_by(layer.values, rtn(layer.host, layer.grid)))
    )
    return np.stack([other if is_rtn else layer.squares(found.codes), other, whole])
