"""GPTQ's loop: columns are rounded one after the other, and each makes good what those before it missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: columns that are worked on before the rest hears of them, in one product instead of one update for each
_COLUMNS = 32


class Columns:
    """Columns ``goal [K, rows]`` of a weight, each one run of memory, of which the last is rounded first.

    ``shares [K, K]``: of what column k misses, ``shares[k, j]`` is added to the aim of column j. ``pivots [K]``: of the
    factor.

    After `run`: ``steps`` int16 and ``missed``, both ``[K, rows]``; ``damped [rows]`` is the squared error of each
    row's output for inputs that are damped: what remains of the aims is orthogonal to what other columns could do.
    """

    def __init__(self, goal: torch.Tensor, shares: torch.Tensor, pivots: torch.Tensor):
        import torch

        self.goal, self.missed = goal, torch.empty_like(goal)
        self.steps = torch.empty(goal.shape, dtype=torch.int16, device=goal.device)
        self.damped = torch.zeros_like(goal[0])
        self._shares, self._pivots = shares, pivots

    def run(self, scales: torch.Tensor, low: torch.Tensor, high: torch.Tensor, block: torch.Tensor) -> None:
        """Round to the grids of blocks, ``[blocks, rows]``: their scales, least and largest steps.

        ``block [K]``: of each column.
        """
        import torch

        grids = list(zip(scales, low, high, strict=True))
        own = [grids[number] for number in block.tolist()]
        room = _Room.like(self.goal[:_COLUMNS])
        for stop in range(len(self.goal), 0, -_COLUMNS):
            part = slice(max(stop - _COLUMNS, 0), stop)
            if stop < _COLUMNS:
                room = _Room.like(self.goal[part])
            torch.addmm(self.goal[part], self._shares[stop:, part].T, self.missed[stop:], out=room.aim)
            room.shares.copy_(self._shares[part, part].T)
            room.goal.copy_(self.goal[part])
            room.round(own[part])
            self.missed[part], self.steps[part] = room.missed, room.steps
            # the aim less the value, of which the weight less the value is known
            left = room.aim.sub_(room.goal).add_(room.missed).square_()
            self.damped.addmv_(left.T, self._pivots[part].square())


@dataclass
class _Room:
    """Room for some columns ``[columns, rows]``, with views that are made once: to make them takes longer than to work
    on them.

    ``shares [columns, columns]``: turned, a row for each column that is added to.
    """

    aim: torch.Tensor
    goal: torch.Tensor
    steps: torch.Tensor
    missed: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def like(cls, part: torch.Tensor) -> _Room:
        aim, goal, steps, missed = part.new_empty(4, *part.shape)
        return cls(aim, goal, steps, missed, part.new_empty(len(part), len(part)))

    def __post_init__(self) -> None:
        done, count = self.missed.T, len(self.aim)
        before = [(done[:, place + 1 :], self.shares[place, place + 1 :]) for place in range(count)]
        rows = zip(*(array.unbind() for array in (self.aim, self.goal, self.steps, self.missed)), strict=True)
        self._columns = [(*row, *others) for row, others in zip(rows, before, strict=True)][::-1]

    def round(self, grids: Sequence[tuple[torch.Tensor, ...]]) -> None:
        """Fill ``steps`` and ``missed`` on the grids of the columns, the last first."""
        import torch

        for (scale, low, high), (aim, goal, step, missed, done, shares) in zip(
            reversed(grids), self._columns, strict=True
        ):
            aim.addmv_(done, shares)
            torch.div(aim, scale, out=step)
            torch.clamp(step.round_(), low, high, out=step)
            torch.addcmul(goal, step, scale, value=-1, out=missed)
