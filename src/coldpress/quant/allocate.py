"""Bits for each group of layers: the least total error whose bytes stay within a budget.

This is the multiple-choice knapsack. Layers that must agree (q, k and v of one attention; embedding and head) are one
group with summed bytes and errors. The groups are taken in one by one, and of all combinations so far only those are
kept that no other beats in both bytes and error, and that can still fit; so the result is exact, bytes and all.
Networks repeat their shapes, so few different sums of bytes come up. Should there be more than `_STATES`, the sums are
put into that many equal steps and the best of each step is kept: what comes out is still within the budget, and close
to the optimum, which it no longer is for certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError

_STATES = 50_000


@dataclass(frozen=True)
class Choice:
    """What a group costs with some bits: ``size`` in bytes, ``error`` in any unit that adds up over groups."""

    size: int
    error: float


#: bits -> what they cost
Choices = Mapping[int, Choice]


def together(members: Sequence[Choices]) -> dict[int, Choice]:
    """The choices of layers that must have the same bits: the sums, for the bits that all of them can have."""
    shared = [bits for bits in members[0] if all(bits in member for member in members)]
    return {
        bits: Choice(sum(member[bits].size for member in members), sum(member[bits].error for member in members))
        for bits in shared
    }


def allocate(items: Mapping[str, Choices], budget_bytes: int) -> dict[str, int]:
    """The bits of every group, of least total error within ``budget_bytes``.

    A budget below the smallest choices raises ColdpressError with the smallest that can be met.
    """
    _check(items, budget_bytes)
    later = sum(min(choice.size for choice in choices.values()) for choices in items.values())
    front = _Front(np.zeros(1, np.int64), np.zeros(1))
    trail: list[tuple[_Places, _Places]] = []
    for choices in items.values():
        later -= min(choice.size for choice in choices.values())
        front, picked, before = front.extend(list(choices.values()), budget_bytes - later)
        trail.append((picked, before))
    place = int(front.errors.argmin())
    bits: dict[str, int] = {}
    for (name, choices), (picked, before) in zip(reversed(list(items.items())), reversed(trail), strict=True):
        bits[name] = list(choices)[int(picked[place])]
        place = int(before[place])
    return {name: bits[name] for name in items}


def _check(items: Mapping[str, Choices], budget: int) -> None:
    for name, choices in items.items():
        if not choices:
            raise ColdpressError(f"there are no bits to choose from for {name}")
        if not all(np.isfinite(choice.error) and choice.size >= 0 for choice in choices.values()):
            raise ColdpressError(f"the errors of {name} are not finite, or its sizes negative")
    smallest = sum(min(choice.size for choice in choices.values()) for choices in items.values())
    if smallest > budget:
        raise ColdpressError(
            f"the weights do not fit into {budget:,} bytes with the bits allowed",
            hint=f"the smallest they can be is {smallest:,} bytes",
        )


_Places = NDArray[np.signedinteger[Any]]


@dataclass
class _Front:
    """Combinations that none beats: ``sizes`` rising, ``errors`` falling, ``[states]``."""

    sizes: NDArray[np.int64]
    errors: NDArray[np.float64]

    def extend(self, choices: Sequence[Choice], limit: int) -> tuple[_Front, _Places, _Places]:
        """The combinations with one more group up to ``limit`` bytes; which choice each took, and which state."""
        sizes = np.add.outer([choice.size for choice in choices], self.sizes).ravel()
        errors = np.add.outer([choice.error for choice in choices], self.errors).ravel()
        order = np.lexsort((errors, sizes))
        order = order[sizes[order] <= limit]
        least = np.minimum.accumulate(np.concatenate(([np.inf], errors[order])))
        order = order[errors[order] < least[:-1]]
        if len(order) > _STATES:
            order = _thin(order, sizes[order])
        picked, before = np.divmod(order, len(self.sizes))
        return _Front(sizes[order], errors[order]), picked.astype(np.int8), before.astype(np.int32)


def _thin(order: _Places, sizes: NDArray[np.int64]) -> _Places:
    """Of a front, the state of least error in each of `_STATES` equal steps of bytes."""
    step = (sizes - sizes[0]) * _STATES // (sizes[-1] - sizes[0] + 1)
    last = np.append(step[1:] != step[:-1], True)
    kept: _Places = order[last]
    return kept
