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
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from coldpress.quant.columns import Columns
from coldpress.quant.grid import Bytes, Codes, Floats, Grid, TurnedGrids, check_gram, dequantize
from coldpress.quant.kquant import kquant, quick_grids
from coldpress.quant.rtn import rtn

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "NDArray[Any] | torch.Tensor"

#: rows that are worked on at once: few enough that a block of columns stays in the cache, and many that the steps of
#: the interpreter, one for each column, cost little; fewer where that would be too many weights for the memory
_ROWS, _LEAST_ROWS, _WEIGHTS = 4096, 512, 1 << 23
#: a damping above the mean power of the inputs would leave nothing of what makes GPTQ better
_MOST_DAMPING = 1.0
_LEAST_DAMPING = 1e-4
_LEAST_CORRELATION = 1e-6
#: what `tokens_needed` is for: of SmolLM2, twice the tokens leave the same divergence, half of them a twentieth more
_TRUST, _USUAL_CORRELATION = 0.225, 0.004
#: columns of a Gram matrix that are multiplied at once; what lies below the diagonal of these strips is not
_STRIP = 256
_PANEL = 192  # columns of a Cholesky factor that are computed at once
#: rows of a matrix that are worked on at once where a copy of the whole would take much memory
_SOME_ROWS = 1024
#: an error below this share of what damping adds to it would be lost in the difference of the two
_LOST = 0.05
_NONE = 1e-12  # the share of the output that values miss which are right to the last place


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
    if factor.pivots is None:
        fallback = f"its Gram matrix is not positive definite, even damped by {factor.damp:g}"
    kept = sum(float(part.is_first.sum()) for part in parts) / len(values) if factor.pivots is not None else 0.0
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

    def seen(self, turned: torch.Tensor, *, roughly: bool = False) -> torch.Tensor:
        """The squared output of each row of a weight ``[K, rows]``, summed over the tokens as they were: ``[rows]``.

        ``roughly``: to some thousandths, where the processor is faster so.
        """
        if roughly and turned.dtype != self._rough.dtype:
            return squared_outputs(turned.to(self._rough.dtype), self._rough).to(turned.dtype)
        return squared_outputs(turned, self.gram)

    def alone(self, turned: torch.Tensor) -> torch.Tensor:
        """The same for inputs that have nothing to do with each other."""
        return turned.square().T @ self.power

    def trusted(self, seen: torch.Tensor, alone: torch.Tensor) -> torch.Tensor:
        """From what `seen` and `alone` give for a weight to the squared output for the inputs as they are trusted."""
        return seen if self.share == 1 else self.share * seen + (1 - self.share) * alone

    def as_seen(self, trusted: torch.Tensor, alone: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return trusted if self.share == 1 else (trusted - (1 - self.share) * alone) / self.share

    @cached_property
    def _rough(self) -> torch.Tensor:
        import torch

        fast = self.gram.dtype == torch.float32 and multiplies_in_bfloat16(self.gram.device.type)
        return self.gram.to(torch.bfloat16) if fast else self.gram


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

    Few tokens cannot tell chance from correlation, and GPTQ fits both alike; the diagonal needs far fewer. The multiple
    is ``tokens / (tokens + sqrt(32 * K / r))``, where r is the mean squared correlation of two inputs: more inputs
    leave more to chance, and strong correlations stand out from it. The form and the 32 were fitted to errors on other
    text than that of the Gram matrix: within 5 percent of the best multiple on average.
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


def multiplies_in_bfloat16(device: str) -> bool:
    """Whether the processor has products of bfloat16, and not only a slow imitation."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def tokens_needed(columns: int) -> int:
    """Tokens that are trusted enough to give most of what more could, for a layer with so many inputs."""
    return math.ceil(_TRUST / (1 - _TRUST) * (32 * columns / _USUAL_CORRELATION) ** 0.5)


@dataclass(frozen=True)
class _Factor:
    """The Cholesky factor ``L [K, K]`` of a damped Gram matrix: its ``pivots [K]``, or None where no damping makes one,
    and ``shares``.

    Its rows and columns are those of the inputs in ``order [K]``, the last of which is rounded first. So what a column
    shall make good of those before it stands below its pivot, and nothing is inverted: for the missed ``d`` of a row
    the best value of the next column is ``w[j] + sum(shares[k, j] * d[k])``, with ``shares[k, j] = L[k, j] / L[j, j]``.
    (With the order turned round, the common form has the inverse's upper factor, which is the inverse of this one.)
    What is above the diagonal of ``shares`` means nothing. ``added [K]``: the damping in that order, ``power [K]`` what
    it was added to.
    """

    pivots: torch.Tensor | None
    shares: torch.Tensor
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
        power, mean = inputs.power[order], inputs.power.mean()
        while True:
            # inputs that were never seen need something on the diagonal even undamped
            added = torch.where(power == 0, mean * max(damp, _LEAST_DAMPING), mean * damp)
            matrix = inputs.gram.index_select(0, order).index_select(1, order)
            if inputs.share != 1:
                matrix *= inputs.share
            matrix.diagonal().copy_(power + added)
            if _factorize(matrix):
                pivots = matrix.diagonal().clone()
                return cls(pivots, matrix.div_(pivots), order, damp, added, power)
            if damp >= _MOST_DAMPING:
                return cls(None, matrix, order, damp, added, power)
            damp = min(max(damp * 10, _LEAST_DAMPING), _MOST_DAMPING)

    @property
    def importance(self) -> Floats:
        """What an error in each column ``[K]`` counts when the columns that follow can make good their share of it.

        These are the squared pivots of the factorization. As the importance for the grids they leave a little less
        error than the power of the inputs, which overrates the errors of inputs that move together.
        """
        import torch

        weights = self.power if self.pivots is None else self.pivots.square()
        placed = torch.empty_like(weights)
        placed[self.order] = weights
        return to_numpy(placed)


def _factorize(matrix: torch.Tensor) -> bool:
    """Put the Cholesky factor into the lower triangle of ``matrix [K, K]``; False where there is none.

    Strip by strip, so that nearly all is done in large products: LAPACK takes twice as long, and as much memory again.
    """
    import torch

    for start in range(0, len(matrix), _PANEL):
        done, own = slice(start), slice(start, start + _PANEL)
        matrix[start:, own].addmm_(matrix[start:, done], matrix[own, done].T, alpha=-1)
        corner, failed = torch.linalg.cholesky_ex(matrix[own, own])
        if failed or not bool(torch.isfinite(corner.diagonal()).all()):
            return False
        matrix[own, own] = corner
        rest = matrix[start + _PANEL :, own]
        rest.copy_(torch.linalg.solve_triangular(corner.T, rest, upper=True, left=False))
    return True


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

    turned = values.T.contiguous()
    grids, left = quick_grids(to_numpy(turned), grid, factor.importance)
    missed = to_torch(left, turned)
    seen_other, seen_weight = inputs.seen(missed, roughly=True), inputs.seen(turned, roughly=True)
    other = inputs.trusted(seen_other, inputs.alone(missed))
    if factor.pivots is None:
        first = kquant(to_numpy(values), grid, factor.importance)
        missed = missed_by(values, first).T
        seen = inputs.seen(missed)
        trusted = inputs.trusted(seen, inputs.alone(missed))
    else:
        first, trusted, seen = _round(turned, inputs, grids, factor)
    is_first = trusted <= other + _NONE * seen_weight
    squares = torch.stack([torch.where(is_first, seen, seen_other), seen_other, seen_weight])
    chosen = is_first.cpu().numpy()
    if not chosen.all():
        first.put(~chosen, rtn(to_numpy(values[~is_first]), grid))
    return _Part(first, chosen, squares.clamp_min(0).double().cpu().numpy())


def _round(
    turned: torch.Tensor, inputs: Inputs, grids: TurnedGrids, factor: _Factor
) -> tuple[Codes, torch.Tensor, torch.Tensor]:
    """Codes of a weight ``[K, rows]``, each column rounded to what makes good best what those before it missed.

    Also the squared error of each row's output, as the inputs are trusted and as they were seen, ``[rows]``.
    """
    import torch

    assert factor.pivots is not None
    with torch.inference_mode():
        loop = Columns(turned.index_select(0, factor.order), factor.shares, factor.pivots)
        scales, low = to_torch(grids.scales, turned), -to_torch(grids.zeros, turned)
        loop.run(scales, low, low + grids.grid.top, factor.order // grids.grid.block_size)
        squares, inverse = loop.missed.square(), factor.order.argsort()
        trusted = loop.damped - squares.T @ factor.added
        alone = squares.T @ factor.power
        seen = inputs.as_seen(trusted, alone)
        if bool((trusted < _LOST * loop.damped).any()):
            seen = inputs.seen(loop.missed[inverse])
            trusted = inputs.trusted(seen, alone)
        return grids.codes(loop.steps.index_select(0, inverse).cpu().numpy()), trusted, seen


def stack(parts: Sequence[Codes]) -> Codes:
    """Codes of one grid, their rows one above the other."""
    if len(parts) == 1:
        return parts[0]
    codes, scales = (np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Codes(codes, scales, np.concatenate(zeros) if zeros else None, parts[0].grid)


def missed_by(values: torch.Tensor, codes: Codes) -> torch.Tensor:
    """What codes miss of ``values [rows, K]``."""
    return values - to_torch(dequantize(codes, values.shape[1]), values)


def squared_outputs(turned: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The squared output of each row of a weight that is ``turned``, ``[K, rows]``, summed over the tokens: ``[rows]``.

    ``gram [K, K]`` is of the same type. It is symmetric: what lies below its diagonal counts by counting the other side
    twice.
    """
    import torch

    total = torch.zeros(turned.shape[1], dtype=torch.promote_types(turned.dtype, torch.float32), device=turned.device)
    for start in range(0, len(gram), _STRIP):
        strip = slice(start, start + _STRIP)
        seen = gram[strip, strip] @ turned[strip]
        if start:
            seen.addmm_(gram[strip, :start], turned[:start], alpha=2)
        total += (seen.mul_(turned[strip])).sum(dim=0, dtype=total.dtype)
    return total


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
