"""Which point is tried next: Optuna's ask and tell, in a form that depends on nothing but the seed and the trials before.

The sampler is made anew for every point, with a seed that follows from the search's and the point's number, and sees the
trials so far. So a search that was killed proposes what it would have proposed otherwise. A point that was tried already is
never proposed again; a space of which every point was tried is at its end.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from coldpress.parts import Sampler
from coldpress.search.space import Dimension, Point, Space, held_value, key_of
from coldpress.search.trials import COMPLETE, FAILED, Trial, frozen_trial, new_study, state_of, suggested, to_optuna

_ATTEMPTS = 32
#: points of a space that are looked through for one that was not tried, when the sampler finds none
_LOOKED_THROUGH = 100_000


class Proposer:
    """Proposes points of ``space``.

    ``directions``: the objectives, each with whether less of it is better. ``held``: dimensions that keep a value, and which the
    sampler does not see. ``name`` tells the stages of a search apart.
    """

    def __init__(
        self,
        space: Space,
        sampler: Sampler,
        directions: Mapping[str, bool],
        *,
        seed: int = 0,
        held: Mapping[str, Any] | None = None,
        name: str = "",
    ):
        self._space, self._sampler, self._directions = space, sampler, directions
        self._seed = f"{seed}/{name}"
        self._held = {**_single(space), **(held or {})}
        self._tried: set[str] = set()
        self._grid = space.points(self._values) if sampler.make(0) is None else None
        self._study = new_study(directions)
        self._asked: Any = None

    def _values(self, dimension: Dimension) -> Iterable[Any]:
        return (self._held[dimension.name],) if dimension.name in self._held else dimension.values()

    def note(self, trial: Trial, learn: bool = True) -> None:
        """Take note of a trial from before, and let the sampler learn from it."""
        self._tried.add(key_of(trial.point))
        if learn and self._grid is None:
            free = [one for one in self._space.dimensions if one.name not in self._held]
            self._study.add_trial(frozen_trial(trial, free, self._directions))

    def ask(self, number: int) -> Point | None:
        """The point for trial ``number``; None when every point was tried."""
        if self._grid is not None:
            return next((point for point in self._grid if key_of(point) not in self._tried), None)
        for attempt in range(_ATTEMPTS):
            point = self._sampled(self._seeded(number, attempt))
            if key_of(point) not in self._tried:
                return point
            self._study.tell(self._asked, state=state_of(FAILED))
        return self._untried(self._seeded(number, _ATTEMPTS))

    def again(self, point: Point, seed: int = 0) -> Point:
        """Propose just this point."""
        if self._grid is None:
            free = {name: to_optuna(value) for name, value in point.items() if name not in self._held}
            self._study.enqueue_trial(free)
            self._sampled(seed)
        return point

    def tell(self, trial: Trial, shortfalls: Mapping[str, float]) -> Trial:
        """Let the sampler learn from the point that was asked for last; returns the trial with what it notes of it."""
        self._tried.add(key_of(trial.point))
        if self._grid is not None:
            return trial
        for label, missed in shortfalls.items():
            self._asked.set_constraint(label, missed)
        values = [trial.numbers[label] for label in self._directions] if trial.state == COMPLETE else None
        self._study.tell(self._asked, values, state=state_of(trial.state))
        kept = self._study.get_trials(deepcopy=False)[self._asked.number]
        return replace(trial, system_attrs=dict(kept.system_attrs))

    def _sampled(self, seed: int) -> Point:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's of parts that it calls experimental
            self._study.sampler = self._sampler.make(seed)
            self._asked = self._study.ask()
            return self._space.point(self._suggested)

    def _suggested(self, dimension: Dimension) -> Any:
        if dimension.name in self._held:
            return self._held[dimension.name]
        return suggested(self._asked, dimension)

    def _untried(self, seed: int) -> Point | None:
        """One of the points that were not tried, each as likely as the others; None when there is none."""
        if not all(one.is_finite for one in self._space.dimensions if one.name not in self._held):
            return None
        left = (point for point in self._space.points(self._values) if key_of(point) not in self._tried)
        found = list(islice(left, _LOOKED_THROUGH))
        if not found:
            return None
        chosen: Point = random.Random(seed).choice(found)
        return self.again(chosen, seed)

    def _seeded(self, number: int, attempt: int) -> int:
        digest = hashlib.sha256(f"{self._seed}/{number}/{attempt}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


def _single(space: Space) -> dict[str, Any]:
    """Dimensions with one value."""
    return {one.name: held_value(one, {}) for one in space.dimensions if len(one.choices) == 1 or one.is_point}
