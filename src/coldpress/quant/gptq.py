"""GPTQ: weights are rounded one input column at a time, and later columns make good what the earlier ones missed.

The method is that of https://arxiv.org/abs/2210.17323. The grids are fixed before (static groups): each block of
neighbouring columns gets the grid of least weighted error (see `importance`). So the columns can be rounded in any
order, the strongest inputs first (act-order), and the result still has one scale for every block of neighbouring
columns, which is all that the runtime's kernels can read. What differs from common implementations: damping that
raises itself, a Gram matrix that is trusted less when few tokens made it, and rows that fall back to plain rounding
when that is better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from coldpress.quant.grid import Bytes, Codes, Floats, Grid, check_gram, dequantize
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "NDArray[Any] | torch.Tensor"

#: columns that are worked on before the rest hears of them, in one product instead of one update for each; with more,
#: the updates are large enough for torch to spread them over threads, which costs more than it gains
_COLUMNS = 32
#: a damping above the mean power of the inputs would leave nothing of what makes GPTQ better
_MOST_DAMPING = 1.0
_LEAST_DAMPING = 1e-4
_LEAST_CORRELATION = 1e-6
#: rows of a matrix that are worked on at once where a copy of the whole would take much memory
_ROWS = 1024


@dataclass
class GptqResult:
    """Codes, and how they came about.

    ``damp``: the share of the inputs' mean power that was added to the diagonal in the end. ``fallback``: why GPTQ did
    not run, or None. ``error``, ``rtn_error``: squared error of the layer's output with these codes, and with those of
    `rtn`, both relative to the squared output ``whole``. ``kept``: the share of rows whose codes are GPTQ's.
    """

    codes: Codes
    damp: float
    fallback: str | None
    error: float
    rtn_error: float
    kept: float
    whole: float = 0.0


def gptq(
    weight: Array, gram: Array, grid: Grid, *, damp: float = 0.01, act_order: bool = True, tokens: int | None = None
) -> GptqResult:
    """Quantize ``weight [rows, K]`` for inputs with ``gram [K, K]``; no row is worse than with `rtn`.

    The arrays are numpy's or torch's; the work is done where the weight is and in its precision, and the codes come
    back as numpy arrays. ``tokens``: how many made the Gram matrix, see `shrink`; None: it is taken as it is. A Gram
    matrix that no damping makes positive definite, or that is all zero, leaves `kquant`'s codes, and says so.
    """
    values = to_torch(weight)
    power = to_torch(gram, values)
    check_gram(values.shape, power)
    power, host = shrink(power, tokens), to_numpy(values)
    if not bool(power.diagonal().any()):
        return GptqResult(kquant(host, grid), damp, "its inputs were all zero", 0.0, 0.0, 0.0)
    order = _order(power, act_order)
    used, factor = _factor(power, order, damp)
    if factor is None:
        weighted = kquant(host, grid, to_numpy(power.diagonal()))
        fallback = f"its Gram matrix is not positive definite, even damped by {used:g}"
        return replace(_choose(values, power, (weighted, rtn(host, grid)), used), fallback=fallback, kept=0.0)
    start = kquant(host, grid, importance(order, factor))
    return _choose(values, power, (_round(values, start, order, factor), rtn(host, grid)), used)


def _order(gram: torch.Tensor, act_order: bool) -> torch.Tensor:
    """The columns in the order in which they are rounded."""
    import torch

    if act_order:
        return gram.diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(gram), device=gram.device)


def importance(order: torch.Tensor, factor: torch.Tensor) -> Floats:
    """What an error in each column ``[K]`` counts when the columns that follow can make good their share of it.

    These are the squared pivots of the factorization. As the importance for the grids they leave a little less error
    than the power of the inputs, which overrates the errors of inputs that move together.
    """
    import torch

    pivots = torch.empty_like(factor[0])
    pivots[order] = factor.diagonal() ** -2
    return to_numpy(pivots)


def shrink(gram: torch.Tensor, tokens: int | None) -> torch.Tensor:
    """The Gram matrix ``[K, K]`` drawn to its diagonal, the more the fewer ``tokens`` made it: see `trust`."""
    share = trust(gram, tokens)
    if share == 1:
        return gram
    shrunk = gram * share
    shrunk.diagonal().copy_(gram.diagonal())
    return shrunk


def trust(gram: torch.Tensor, tokens: int | None) -> float:
    """What to multiply the Gram matrix ``[K, K]`` with beside its diagonal; ``tokens`` None trusts it as it is.

    Few tokens cannot tell chance from correlation, and GPTQ fits both alike; the diagonal needs far fewer. The multiple is
    ``tokens / (tokens + sqrt(32 * K / r))``, where r is the mean squared correlation of two inputs: more inputs leave more
    to chance, and strong correlations stand out from it. The form and the 32 were fitted to errors on other text than that
    of the Gram matrix: within 5 percent of the best multiple on average.
    """
    import torch

    power = gram.diagonal()
    seen = int((power > 0).sum())
    if tokens is None or seen < 2:
        return 1.0
    size = torch.where(power > 0, power, 1).sqrt()
    parts = zip(gram.split(_ROWS), size.split(_ROWS), strict=True)
    squares = sum(float((rows / size / own[:, None]).square_().sum()) for rows, own in parts) - seen
    correlation = max(squares / (seen * (seen - 1)), _LEAST_CORRELATION)
    return float(tokens / (tokens + (32 * seen / correlation) ** 0.5))


def _factor(gram: torch.Tensor, order: torch.Tensor, damp: float) -> tuple[float, torch.Tensor | None]:
    """The damping that was enough, and the upper factor U of the inverse, ``inverse = U.T @ U``; None: none was.

    With the rows and columns in reverse, the damped matrix is ``L @ L.T``, and U is the inverse of L in reverse: one
    factorization and one triangular inverse, where the common way inverts first and factors the inverse.
    """
    import torch

    mean = gram.diagonal().mean()
    reverse = order.flip(0)
    turned = gram[reverse[:, None], reverse]
    diagonal = turned.diagonal().clone()
    while True:
        # inputs that were never seen need something on the diagonal even undamped
        turned.diagonal().copy_(diagonal + mean * torch.where(diagonal == 0, max(damp, _LEAST_DAMPING), damp))
        lower, failed = torch.linalg.cholesky_ex(turned)
        if not failed and bool(torch.isfinite(lower).all()):
            break
        if damp >= _MOST_DAMPING:
            return damp, None
        damp = min(max(damp * 10, _LEAST_DAMPING), _MOST_DAMPING)
    del turned
    inverse = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    return damp, inverse.flip(0, 1)


def _round(values: torch.Tensor, start: Codes, order: torch.Tensor, factor: torch.Tensor) -> Codes:
    """Codes on the grids of ``start``, the columns rounded in ``order``, each error passed on to those that follow."""
    import torch

    count = len(order)
    # columns become rows, so that each is one run of memory
    rest = values.T[order].contiguous()
    block, scales = order // start.grid.block_size, to_torch(start.scales, values).T
    zeros = to_torch(zero_points(start), values).T
    found = torch.empty(rest.shape, dtype=torch.uint8, device=rest.device)
    for first in range(0, count, _COLUMNS):
        part = slice(first, min(first + _COLUMNS, count))
        grids = _Grids(scales[block[part]], zeros[block[part]], start.grid.top)
        found[order[part]] = _round_columns(rest[part], factor[part, part], grids)
        rest[part.stop :].addmm_(factor[part, part.stop :].T, rest[part], alpha=-1)
    codes = np.repeat(zero_points(start)[..., None], start.grid.block_size, axis=2)
    codes.reshape(len(codes), -1)[:, :count] = found.T.cpu().numpy()
    return Codes(codes, start.scales, start.zero_points, start.grid)


@dataclass
class _Grids:
    """The grids of some columns: ``scales`` and ``zeros`` ``[columns, rows]``, and the largest code."""

    scales: torch.Tensor
    zeros: torch.Tensor
    top: int


def _round_columns(rest: torch.Tensor, factor: torch.Tensor, grids: _Grids) -> torch.Tensor:
    """The codes of ``rest [columns, rows]``, in whose place is left what each column missed, over its pivot."""
    import torch

    codes = torch.empty_like(rest)
    pivots = factor.diagonal().tolist()
    for column, pivot in enumerate(pivots):
        value, scale, zero, code = rest[column], grids.scales[column], grids.zeros[column], codes[column]
        torch.div(value, scale, out=code).round_().add_(zero).clamp_(0, grids.top)
        value.addcmul_(code - zero, scale, value=-1).div_(pivot)
        if column + 1 < len(pivots):
            rest[column + 1 :].addr_(factor[column, column + 1 :], value, alpha=-1)
    return codes.to(torch.uint8)


def _choose(values: torch.Tensor, gram: torch.Tensor, candidates: tuple[Codes, ...], damp: float) -> GptqResult:
    """Of two candidates, the second `rtn`'s, the codes that leave each row the least error."""
    import torch

    errors = torch.stack([output_error_rows(values, codes, gram) for codes in candidates])
    best = errors.argmin(dim=0).cpu().numpy()
    whole = max(float(squared_outputs(values, gram).sum()), 1e-30)
    least, rounded = float(errors.min(dim=0).values.sum()) / whole, float(errors[-1].sum()) / whole
    return GptqResult(_pick(candidates, best), damp, None, least, rounded, float((best == 0).mean()), whole)


def _pick(candidates: tuple[Codes, ...], best: NDArray[np.int64]) -> Codes:
    """Each row from the candidate that ``best [rows]`` names."""
    first = candidates[0]
    codes, scales = first.codes.copy(), first.scales.copy()
    zeros = None if first.zero_points is None else first.zero_points.copy()
    for place, other in enumerate(candidates[1:], start=1):
        rows = best == place
        codes[rows], scales[rows] = other.codes[rows], other.scales[rows]
        if zeros is not None and other.zero_points is not None:
            zeros[rows] = other.zero_points[rows]
    return Codes(codes, scales, zeros, first.grid)


def output_error_rows(values: torch.Tensor, codes: Codes, gram: torch.Tensor) -> torch.Tensor:
    """`output_errors` where the tensors are."""
    return squared_outputs(values - to_torch(dequantize(codes, values.shape[1]), values), gram)


def squared_outputs(weight: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The squared output of each row of ``weight [rows, K]``, summed over the tokens that made ``gram [K, K]``: ``[rows]``."""
    import torch

    return torch.cat([torch.einsum("rk,rk->r", rows @ gram, rows) for rows in weight.split(_ROWS)])


def zero_points(codes: Codes) -> Bytes:
    """The zero points ``[rows, blocks]``, also where all are the middle code."""
    if codes.zero_points is None:
        return np.full(codes.scales.shape, codes.grid.middle, np.uint8)
    return codes.zero_points


def to_torch(array: Array, like: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor of float32 or float64, the very memory of ``array`` where possible; of ``like``'s type and place."""
    import torch

    if isinstance(array, np.ndarray):
        # torch wants memory it may write to, which a mapped file is not
        kind = np.float64 if array.dtype == np.float64 else np.float32
        array = torch.from_numpy(np.require(array, kind, ("C", "W")))
    tensor = array.detach()
    if like is not None:
        return tensor.to(like)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def to_numpy(tensor: torch.Tensor) -> Floats:
    """The values in memory of the CPU."""
    return cast("Floats", tensor.cpu().numpy())
