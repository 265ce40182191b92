"""GPTQ: weights are rounded one input column at a time, and later columns make good what the earlier ones missed.

The method is that of https://arxiv.org/abs/2210.17323. The grids are fixed before (static groups): each block of
neighbouring columns gets the grid of least weighted error (see `importance`). So the columns can be rounded in any
order, the strongest inputs first (act-order), and the result still has one scale for every block of neighbouring
columns, which is all that the runtime's kernels can read. What differs from common implementations: damping that
raises itself, a Gram matrix that is trusted less when few tokens made it, and rows that fall back to plain rounding
when that is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from coldpress.quant.grid import Bytes, Codes, Floats, Grid, check_gram, dequantize
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "NDArray[Any] | torch.Tensor"

#: columns that are worked on before the rest hears of them, in one product instead of one update for each
_COLUMNS = 32
#: rows that are worked on at once: few enough that a block of columns stays in the cache, and many that the steps of
#: the interpreter, one for each column, cost little; fewer where that would be too many weights for the memory
_ROWS, _LEAST_ROWS, _WEIGHTS = 4096, 512, 1 << 23
#: a damping above the mean power of the inputs would leave nothing of what makes GPTQ better
_MOST_DAMPING = 1.0
_LEAST_DAMPING = 1e-4
_LEAST_CORRELATION = 1e-6
#: what `tokens_needed` is for: of SmolLM2, four times the tokens lower the divergence by another tenth
_TRUST, _USUAL_CORRELATION = 0.36, 0.004
#: columns of a Gram matrix that are multiplied at once; what lies below the diagonal of these strips is not
_STRIP = 256
#: rows of a matrix that are worked on at once where a copy of the whole would take much memory
_SOME_ROWS = 1024
#: an error below this share of what damping adds to it would be lost in the difference of the two
_LOST = 0.05


@dataclass
class GptqResult:
    """Codes, and how they came about.

    ``damp``: the share of the inputs' mean power that was added to the diagonal in the end. ``fallback``: why GPTQ did
    not run, or None. ``kept``: the share of rows whose codes are GPTQ's. ``squares`` float64 ``[3, rows]``: the squared
    output, for the inputs as they were seen, of what these codes miss, of what `rtn` misses and of the weight.
    """

    codes: Codes
    damp: float
    fallback: str | None
    kept: float
    squares: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The squared error of the layer's output, relative to the squared output."""
        return self._relative(0)

    @property
    def rtn_error(self) -> float:
        """The same with the codes of `rtn`."""
        return self._relative(1)

    def _relative(self, place: int) -> float:
        return float(self.squares[place].sum() / max(self.squares[2].sum(), 1e-30))


def gptq(
    weight: Array, gram: Array, grid: Grid, *, damp: float = 0.01, act_order: bool = True, tokens: int | None = None
) -> GptqResult:
    """Quantize ``weight [rows, K]`` for inputs with ``gram [K, K]``; no row is worse than with `rtn`.

    The arrays are numpy's or torch's; the work is done where the weight is and in its precision, and the codes come
    back as numpy arrays. ``tokens``: how many made the Gram matrix, see `Inputs`; None: it is taken as it is. A Gram
    matrix that no damping makes positive definite, or that is all zero, leaves `kquant`'s codes, and says so.
    """
    values = to_torch(weight)
    inputs = Inputs.of(to_torch(gram, values), tokens)
    check_gram(values.shape, inputs.gram)
    if not bool(inputs.power.any()):
        unseen = np.zeros((3, len(values)))
        return GptqResult(kquant(to_numpy(values), grid), damp, "its inputs were all zero", 0.0, unseen)
    factor = _Factor.of(inputs, act_order, damp)
    parts = _on_all_cores(partial(_some_rows, inputs=inputs, grid=grid, factor=factor), _row_parts(values))
    fallback = None
    if factor.lower is None:
        fallback = f"its Gram matrix is not positive definite, even damped by {factor.damp:g}"
    kept = sum(float(part.is_first.sum()) for part in parts) / len(values) if factor.lower is not None else 0.0
    squares = np.concatenate([part.squares for part in parts], axis=1)
    return GptqResult(stack([part.codes for part in parts]), factor.damp, fallback, kept, squares)


@dataclass(frozen=True)
class Inputs:
    """The Gram matrix ``[K, K]`` of a layer's inputs, and how far it is trusted: see `trust`.

    ``power [K]``: its diagonal. As it is trusted, what lies beside the diagonal is ``share`` times as large.
    """

    gram: torch.Tensor
    power: torch.Tensor
    share: float

    @classmethod
    def of(cls, gram: torch.Tensor, tokens: int | None) -> Inputs:
        return cls(gram, gram.diagonal(), trust(gram, tokens))

    def seen(self, weight: torch.Tensor) -> torch.Tensor:
        """The squared output of each row of ``weight [rows, K]``, summed over the tokens as they were: ``[rows]``."""
        return squared_outputs(weight, self.gram)

    def trusted(self, seen: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """From what `seen` gives for a weight to the squared output for the inputs as they are trusted."""
        return seen if self.share == 1 else self.share * seen + (1 - self.share) * self._alone(weight)

    def as_seen(self, trusted: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return trusted if self.share == 1 else (trusted - (1 - self.share) * self._alone(weight)) / self.share

    def _alone(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.square() @ self.power


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
    inverse = torch.where(power > 0, power, 1).reciprocal()
    parts = zip(gram.split(_SOME_ROWS), inverse.split(_SOME_ROWS), strict=True)
    squares = sum(float(rows.square() @ inverse @ own) for rows, own in parts) - seen
    correlation = max(squares / (seen * (seen - 1)), _LEAST_CORRELATION)
    return float(tokens / (tokens + (32 * seen / correlation) ** 0.5))


def tokens_needed(columns: int) -> int:
    """Tokens that are trusted enough to give most of what more could, for a layer with so many inputs."""
    return math.ceil(_TRUST / (1 - _TRUST) * (32 * columns / _USUAL_CORRELATION) ** 0.5)


@dataclass(frozen=True)
class _Factor:
    """The Cholesky factor ``lower [K, K]`` of a damped Gram matrix, or None where no damping makes one.

    Its rows and columns are those of the inputs in ``order [K]``, the last of which is rounded first. So what a column
    shall make good of those before it stands below its pivot, and nothing is inverted: for the missed ``d`` of a row the
    best value of the next column is ``w[j] + sum(lower[k, j] * d[k]) / lower[j, j]``. (With the order turned round, the
    common form has the inverse's upper factor, which is the inverse of this one.) ``added [K]``: the damping in that order.
    """

    lower: torch.Tensor | None
    order: torch.Tensor
    damp: float
    added: torch.Tensor
    power: torch.Tensor

    @classmethod
    def of(cls, inputs: Inputs, act_order: bool, damp: float) -> _Factor:
        import torch

        order = torch.arange(len(inputs.power), device=inputs.power.device).flip(0)
        if act_order:
            order = inputs.power.argsort(descending=True, stable=True).flip(0)
        turned, power, mean = inputs.gram[order][:, order], inputs.power[order], inputs.power.mean()
        if inputs.share != 1:
            turned *= inputs.share
        while True:
            # inputs that were never seen need something on the diagonal even undamped
            added = torch.where(power == 0, mean * max(damp, _LEAST_DAMPING), mean * damp)
            turned.diagonal().copy_(power + added)
            lower, failed = torch.linalg.cholesky_ex(turned)
            if not failed and bool(torch.isfinite(lower.diagonal()).all()):
                return cls(lower, order, damp, added, power)
            if damp >= _MOST_DAMPING:
                return cls(None, order, damp, added, power)
            damp = min(max(damp * 10, _LEAST_DAMPING), _MOST_DAMPING)

    @property
    def importance(self) -> Floats:
        """What an error in each column ``[K]`` counts when the columns that follow can make good their share of it.

        These are the squared pivots of the factorization. As the importance for the grids they leave a little less error
        than the power of the inputs, which overrates the errors of inputs that move together.
        """
        import torch

        weights = self.power if self.lower is None else self.lower.diagonal().square()
        placed = torch.empty_like(weights)
        placed[self.order] = weights
        return to_numpy(placed)


def _row_parts(values: torch.Tensor) -> Sequence[torch.Tensor]:
    return values.split(min(max(_WEIGHTS // values.shape[1], _LEAST_ROWS), _ROWS))


def _on_all_cores(work: Callable[[torch.Tensor], _Part], parts: Sequence[torch.Tensor]) -> list[_Part]:
    """Each part in a thread of its own, where torch has several: most steps are too small for it to divide them."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return list(map(work, parts))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Part:
    """Codes of some rows, which of them are those of GPTQ, and the squares of `GptqResult`."""

    codes: Codes
    is_first: NDArray[np.bool_]
    squares: NDArray[np.float64]


def _some_rows(values: torch.Tensor, inputs: Inputs, grid: Grid, factor: _Factor) -> _Part:
    """Of GPTQ's codes, or `kquant`'s without a factor, and `rtn`'s, those that leave each row the least error."""
    import torch

    host = to_numpy(values)
    first = kquant(host, grid, factor.importance, quick=factor.lower is not None)
    other = rtn(host, grid)
    if factor.lower is None:
        missed = missed_by(values, first)
        trusted = inputs.trusted(inputs.seen(missed), missed)
    else:
        first, trusted, missed = _round(values, first, inputs, factor)
    seen = inputs.as_seen(trusted, missed)
    missed = missed_by(values, other)
    seen_other = inputs.seen(missed)
    is_first = trusted <= inputs.trusted(seen_other, missed)
    squares = torch.stack([torch.where(is_first, seen, seen_other), seen_other, inputs.seen(values)])
    chosen = is_first.cpu().numpy()
    codes = first if chosen.all() else _pick(chosen, first, other)
    return _Part(codes, chosen, squares.clamp_min(0).double().cpu().numpy())


def _round(
    values: torch.Tensor, start: Codes, inputs: Inputs, factor: _Factor
) -> tuple[Codes, torch.Tensor, torch.Tensor]:
    """Codes on the grids of ``start``, each column rounded to what makes good best what those before it missed.

    Also the squared error of each row's output, as the inputs are trusted, ``[rows]``; and what the codes miss, ``[rows, K]``.
    """
    import torch

    lower, order, count = factor.lower, factor.order, values.shape[1]
    assert lower is not None
    # columns become rows, so that each is one run of memory
    goal = values.T.contiguous()[order]
    missed, pivots = torch.empty_like(goal), lower.diagonal()
    grids, block = _Grids.of(start, values), order // start.grid.block_size
    found = torch.empty(goal.shape, dtype=torch.uint8, device=goal.device)
    damped = torch.zeros_like(goal[0])
    for stop in range(count, 0, -_COLUMNS):
        part = slice(max(stop - _COLUMNS, 0), stop)
        aim = torch.addmm(goal[part], (lower[stop:, part] / pivots[part]).T, missed[stop:])
        own = grids.columns(block[part])
        shares = (lower[part, part] / pivots[part]).T.contiguous()
        steps = _round_columns(aim, goal[part], shares, own, missed[part])
        found[order[part]] = (steps + own.zeros).to(torch.uint8)
        # what remains of the aim is orthogonal to what other columns could do
        damped += (aim.addcmul_(steps, own.scales, value=-1) * pivots[part, None]).square_().sum(dim=0)
    trusted = damped - missed.square().T @ factor.added
    missed = missed[order.argsort()].T
    if bool((trusted < _LOST * damped).any()):
        trusted = inputs.trusted(inputs.seen(missed), missed)
    codes = np.repeat(zero_points(start)[..., None], start.grid.block_size, axis=2)
    codes.reshape(len(codes), -1)[:, :count] = found.T.cpu().numpy()
    return Codes(codes, start.scales, start.zero_points, start.grid), trusted, missed


@dataclass
class _Grids:
    """The grids of some blocks, or columns: ``scales`` and ``zeros`` ``[columns, rows]``, and the largest code."""

    scales: torch.Tensor
    zeros: torch.Tensor
    top: int

    @classmethod
    def of(cls, codes: Codes, like: torch.Tensor) -> _Grids:
        scales, zeros = (to_torch(array, like).T.contiguous() for array in (codes.scales, zero_points(codes)))
        return cls(scales, zeros, codes.grid.top)

    def columns(self, blocks: torch.Tensor) -> _Grids:
        """Those of the columns that lie in these blocks."""
        return _Grids(self.scales[blocks], self.zeros[blocks], self.top)


def _round_columns(
    aim: torch.Tensor, goal: torch.Tensor, shares: torch.Tensor, grids: _Grids, missed: torch.Tensor
) -> torch.Tensor:
    """The steps of some columns, the last first, and what they miss of ``goal``; all but ``shares`` are ``[columns, rows]``.

    ``shares [columns, columns]``: of what column k misses, ``shares[j, k]`` is added to the aim of column j.
    """
    import torch

    low, high, steps = -grids.zeros, grids.top - grids.zeros, torch.empty_like(aim)
    columns = zip(*(array.unbind(0) for array in (aim, goal, grids.scales, low, high, steps, missed)), strict=True)
    done, count = missed.T, aim.shape[0]
    for place, (value, weight, scale, least, most, step, left) in reversed(list(enumerate(columns))):
        if place + 1 < count:
            value.addmv_(done[:, place + 1 :], shares[place, place + 1 :])
        torch.div(value, scale, out=step)
        torch.clamp(step.round_(), least, most, out=step)
        torch.addcmul(weight, step, scale, value=-1, out=left)
    return steps


def stack(parts: Sequence[Codes]) -> Codes:
    """Codes of one grid, their rows one above the other."""
    if len(parts) == 1:
        return parts[0]
    codes, scales = (np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Codes(codes, scales, np.concatenate(zeros) if zeros else None, parts[0].grid)


def _pick(is_first: NDArray[np.bool_], first: Codes, other: Codes) -> Codes:
    """Each row from the first or from the other."""
    picked = [
        None if one is None or two is None else np.where(is_first.reshape(-1, *[1] * (one.ndim - 1)), one, two)
        for one, two in (
            (first.codes, other.codes),
            (first.scales, other.scales),
            (first.zero_points, other.zero_points),
        )
    ]
    codes, scales, zeros = picked
    assert codes is not None and scales is not None
    return Codes(codes, scales, zeros, first.grid)


def missed_by(values: torch.Tensor, codes: Codes) -> torch.Tensor:
    """What codes miss of ``values [rows, K]``."""
    return values - to_torch(dequantize(codes, values.shape[1]), values)


def squared_outputs(weight: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The squared output of each row of ``weight [rows, K]``, summed over the tokens that made ``gram [K, K]``: ``[rows]``.

    A Gram matrix is symmetric: what lies below its diagonal counts by counting the other side twice.
    """
    import torch

    found = []
    for rows in weight.split(_SOME_ROWS):
        total = torch.zeros_like(rows[:, 0])
        for start in range(0, len(gram), _STRIP):
            strip = slice(start, start + _STRIP)
            seen = rows[:, strip] @ gram[strip, strip]
            if start:
                seen.addmm_(rows[:, :start], gram[:start, strip], alpha=2)
            total += (seen.mul_(rows[:, strip])).sum(dim=1)
        found.append(total)
    return torch.cat(found)


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
