"""Polish of a quantized layer: better codes and scales for the output, starting from codes that exist.

Both ways lower ``trace(d @ gram @ d.T)``, the squared error of the layer's output, and need no activations.

`polish` walks as AutoRound does (https://arxiv.org/abs/2309.05516): each weight gets an offset to its rounding, in
-0.5 to 0.5, that moves against the sign of the gradient by steps that shrink to nothing. All weights move at once, so
it goes far from a poor start in few steps, and finds little where GPTQ has been.

`descend` takes one column after the other and gives each weight the code that is best while the others stay. Every
move lowers the error. A sweep costs about as much as GPTQ, and sweeps improve GPTQ's codes, too.

A Gram matrix of few tokens should come through `shrink` here, as within GPTQ.

In both, the scales are fitted to the codes by least squares in the same measure, exactly and block by block; moving
them by the sign of their gradient gained less. Where the grid stores scales in fewer digits, each takes the nearest
value there is before the next block is fitted: the error is a parabola in one scale, so no other is better. Zero points
stay. No row comes out worse than it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldpress.quant.gptq import Array, to_numpy, to_torch, zero_points
from coldpress.quant.grid import Codes, Grid, check_gram

if TYPE_CHECKING:
    import torch

#: weights that are worked on at once; the rows are independent, and this bounds the memory
_WEIGHTS = 1 << 22
#: how far an offset can walk in all its steps, were they all as long as the first
_WALK = 0.5
#: how close to the border of the next code an offset starts at most
_BORDER = 0.49
_COLUMNS = 32


@dataclass
class Polished:
    """Codes, and the squared error of the output ``before`` and ``after``, both relative to the squared output."""

    codes: Codes
    before: float
    after: float


def polish(
    weight: Array, gram: Array, codes: Codes, *, steps: int = 100, seconds: float | None = None, scales: bool = True
) -> Polished:
    """Move the rounding of ``weight [rows, K]`` by ``steps`` sign-gradient steps from ``codes``; best of each row.

    ``seconds`` ends the walk earlier, and what comes out then depends on the machine. ``scales``: fit them at the end.
    The arrays are numpy's or torch's; the work is done where the weight is.
    """

    def walk(layer: _Layer, until: float | None) -> None:
        _walk(layer, steps, until)
        if scales:
            layer.fit_scales()

    return _by_rows(weight, gram, codes, walk, seconds)


def descend(
    weight: Array, gram: Array, codes: Codes, *, sweeps: int = 3, seconds: float | None = None, scales: bool = True
) -> Polished:
    """Give every weight of ``weight [rows, K]`` the best code while the others stay, in ``sweeps`` over all columns.

    The parameters are those of `polish`.
    """

    def sweep(layer: _Layer, until: float | None) -> None:
        for _ in range(sweeps):
            if scales:
                layer.fit_scales()
            if until is not None and time.monotonic() >= until:
                return
            _sweep(layer)
        if scales:
            layer.fit_scales()

    return _by_rows(weight, gram, codes, sweep, seconds)


def _by_rows(
    weight: Array, gram: Array, codes: Codes, work: Callable[[_Layer, float | None], None], seconds: float | None
) -> Polished:
    """Apply ``work`` to chunks of rows; each gets its share of the time."""
    import torch

    values = to_torch(weight)
    power = to_torch(gram, values)
    check_gram(values.shape, power)
    found = Codes(codes.codes.copy(), codes.scales.copy(), codes.zero_points, codes.grid)
    begin, step, rows = time.monotonic(), max(1, _WEIGHTS // values.shape[1]), len(values)
    before = after = whole = 0.0
    for row in range(0, rows, step):
        part = slice(row, min(row + step, rows))
        layer = _Layer.of(values[part], power, codes, part)
        start = layer.copy()
        work(layer, None if seconds is None else begin + seconds * part.stop / rows)
        old, new = start.errors(), layer.errors()
        layer.put(found, part, new < old)
        before, after = before + float(old.sum()), after + float(torch.minimum(old, new).sum())
        whole += float(torch.einsum("rk,rk->", values[part] @ power, values[part]))
    whole = max(whole, 1e-30)
    return Polished(found, before / whole, after / whole)


@dataclass
class _Layer:
    """Some rows: ``values`` and ``codes`` ``[rows, K]``, ``scales`` and ``zeros`` ``[rows, blocks]``.

    ``block [K]``: the block of each column. Codes are whole numbers in the type of the values.
    """

    values: torch.Tensor
    gram: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    block: torch.Tensor
    grid: Grid

    @classmethod
    def of(cls, values: torch.Tensor, gram: torch.Tensor, codes: Codes, part: slice) -> _Layer:
        import torch

        count = values.shape[1]
        flat = codes.codes[part].reshape(len(values), -1)[:, :count]
        block = torch.arange(count, device=values.device) // codes.grid.block_size
        rest = (codes.scales[part].copy(), zero_points(codes)[part])
        scales, zeros = (to_torch(array, values) for array in rest)
        return cls(values, gram, to_torch(flat, values), scales, zeros, block, codes.grid)

    def copy(self) -> _Layer:
        return _Layer(self.values, self.gram, self.codes, self.scales, self.zeros, self.block, self.grid)

    def steps(self) -> torch.Tensor:
        return self.codes - self.zeros[:, self.block]

    def missed(self) -> torch.Tensor:
        """What the codes are beside the values, ``[rows, K]``."""
        return self.steps() * self.scales[:, self.block] - self.values

    def errors(self) -> torch.Tensor:
        """The squared error of each row's output, ``[rows]``."""
        import torch

        missed = self.missed()
        return torch.einsum("rk,rk->r", missed @ self.gram, missed)

    def fit_scales(self) -> None:
        """Move the scale of each block in turn to where the error is least while the others stay."""
        import torch

        steps, missed, scales = self.steps(), self.missed(), self.scales.clone()
        for block in range(scales.shape[1]):
            part = torch.nonzero(self.block == block).ravel()
            own = slice(int(part[0]), int(part[-1]) + 1)
            along = torch.einsum("rk,rk->r", missed @ self.gram[:, own], steps[:, own])
            power = torch.einsum("rk,rk->r", steps[:, own] @ self.gram[own, own], steps[:, own])
            # a block without steps, or whose inputs were never seen, keeps its scale
            change = torch.where(power > 0, -along / power.clamp_min(torch.finfo(power.dtype).tiny), 0)
            moved = self.stored(scales[:, block] + change, scales[:, block])
            missed[:, own] += (moved - scales[:, block])[:, None] * steps[:, own]
            scales[:, block] = moved
        self.scales = scales

    def stored(self, scales: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """The nearest ``scales`` that the grid's type holds; those it does not reach stay ``otherwise``."""
        import torch

        kind = getattr(torch, self.grid.scale_dtype)
        rounded = scales.to(kind).to(scales.dtype)
        reached = torch.isfinite(rounded) & (rounded.abs() >= torch.finfo(kind).tiny)
        return torch.where(reached, rounded, otherwise)

    def put(self, codes: Codes, part: slice, rows: torch.Tensor) -> None:
        """Write the chosen ``rows`` into the codes of the whole weight."""
        import torch

        chosen = np.flatnonzero(rows.cpu().numpy()) + part.start
        flat = codes.codes.reshape(len(codes.codes), -1)
        flat[chosen, : self.values.shape[1]] = self.codes[rows].to(torch.uint8).cpu().numpy()
        codes.scales[chosen] = to_numpy(self.scales[rows])


def _walk(layer: _Layer, steps: int, until: float | None) -> None:
    """Leave in the layer the best codes of each row on a walk of sign-gradient steps."""
    import torch

    scales, zeros = layer.scales[:, layer.block], layer.zeros[:, layer.block]
    # where rounding to nearest would give another code, the offset starts at the border next to it
    exact = layer.values / scales + zeros
    exact = torch.minimum(torch.maximum(exact, layer.codes - _BORDER), layer.codes + _BORDER)
    offsets = torch.zeros_like(exact)
    best, least = layer.codes.clone(), torch.full_like(exact[:, 0], torch.inf)
    for step in range(steps + 1):
        layer.codes = (exact + offsets).round_().clamp_(0, layer.grid.top)
        missed = layer.missed()
        slope = missed @ layer.gram
        errors = torch.einsum("rk,rk->r", slope, missed)
        better = errors < least
        least, best = torch.where(better, errors, least), torch.where(better[:, None], layer.codes, best)
        if until is not None and time.monotonic() >= until:
            break
        offsets.sub_((slope * scales).sign_(), alpha=_WALK / max(steps, 1) * (1 - step / max(steps, 1)))
        offsets.clamp_(-0.5, 0.5)
    layer.codes = best


def _sweep(layer: _Layer) -> None:
    """One round over all columns, those with the strongest inputs first; the columns of a few are brought up to date
    at once, and corrected among themselves."""
    values, missed, codes = (array.T.contiguous() for array in (layer.values, layer.missed(), layer.codes))
    scales, zeros = layer.scales.T, layer.zeros.T
    power = layer.gram.diagonal()
    order = power.argsort(descending=True, stable=True)
    order = order[power[order] > 0]
    for first in range(0, len(order), _COLUMNS):
        some = order[first : first + _COLUMNS]
        gram = layer.gram[some][:, some]
        slopes = layer.gram[some] @ missed
        for place, (column, block) in enumerate(zip(some.tolist(), layer.block[some].tolist(), strict=True)):
            aim = values[column] + missed[column] - slopes[place] / gram[place, place]
            code = aim.div_(scales[block]).round_().add_(zeros[block]).clamp_(0, layer.grid.top)
            change = (code - codes[column]) * scales[block]
            codes[column] = code
            missed[column] += change
            slopes.addr_(gram[:, place], change)
    layer.codes = codes.T.contiguous()
