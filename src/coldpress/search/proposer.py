"""Which point is tried next: Optuna's ask and tell, in a form that depends on nothing but the seed and the trials
before.

A search that goes on asks its sampler again for every trial that is known, and tells it what became of it: so the
sampler is where it was, without its state being stored. Several points may be asked for before the first of them is
told. A point that was proposed is never proposed again; a space of which every point was proposed is at its end.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from coldpress.parts import Sampler
from coldpress.search.space import Dimension, Point, Space, held_value, key_of
from coldpress.search.trials import COMPLETE, FAILED, Trial, new_study, state_of, suggested, to_optuna

if TYPE_CHECKING:
    from optuna.trial import Trial as OptunaTrial

_ATTEMPTS = 32
#: points of a space that are looked through for one that was not tried, when the sampler finds none
_LOOKED_THROUGH = 100_000


class Proposer:
    """Proposes points of ``space``.

    ``directions``: the objectives, each with whether less of it is better. ``held``: dimensions that keep a value, and
    which the sampler does not see. ``name`` tells the stages of a search apart.
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
        self._proposed: set[str] = set()
        own = sampler.make(_number(self._seed))
        self._grid = space.points(self._values) if own is None else None
        self._study = new_study(directions, sampler=own)
        self._asked: dict[int, OptunaTrial] = {}

    def _values(self, dimension: Dimension) -> Iterable[Any]:
        return (self._held[dimension.name],) if dimension.name in self._held else dimension.values()

    def skip(self, point: Point) -> None:
        """Do not propose a point that another stage tried."""
        self._proposed.add(key_of(point))

    def ask(self, number: int) -> Point | None:
        """The point for trial ``number``; None when every point was proposed."""
        if self._grid is not None:
            point = next((point for point in self._grid if key_of(point) not in self._proposed), None)
        else:
            point = self._sampled_once(number) or self._left_over(number)
        if point is not None:
            self.skip(point)
        return point

    def replace(self, number: int, asked: Point | None, tried: Point) -> None:
        """Take back the point that was asked for as trial ``number``, for the one that an earlier run tried in its
        place."""
        if asked is not None:
            self._proposed.discard(key_of(asked))
        self.skip(tried)
        if self._grid is not None:
            return
        if number in self._asked:
            self._study.tell(self._asked[number], state=state_of(FAILED))
        self._enqueued(number, tried)

    def tell(self, trial: Trial) -> None:
        """Let the sampler learn from a point that was asked for."""
        if self._grid is not None:
            return
        asked = self._asked.pop(trial.number)
        for label, missed in trial.shortfalls.items():
            asked.set_constraint(label, missed)
        values = [trial.numbers[label] for label in self._directions] if trial.state == COMPLETE else None
        self._study.tell(asked, values, state=state_of(trial.state))

    def _sampled_once(self, number: int) -> Point | None:
        """A point of the sampler's that was not proposed before; None when it finds none."""
        for _ in range(_ATTEMPTS):
            point = self._sampled(number)
            if key_of(point) not in self._proposed:
                return point
            self._study.tell(self._asked.pop(number), state=state_of(FAILED))
        return None

    def _sampled(self, number: int) -> Point:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's of parts that it calls experimental
            asked = self._asked[number] = self._study.ask()
            return self._space.point(lambda dimension: self._suggested(asked, dimension))

    def _suggested(self, asked: OptunaTrial, dimension: Dimension) -> Any:
        if dimension.name in self._held:
            return self._held[dimension.name]
        return suggested(asked, dimension)

    def _left_over(self, number: int) -> Point | None:
        """One of the points that were not proposed, each as likely as the others; None when there is none."""
        if not all(one.is_finite for one in self._space.dimensions if one.name not in self._held):
            return None
        left = (point for point in self._space.points(self._values) if key_of(point) not in self._proposed)
        found = list(islice(left, _LOOKED_THROUGH))
        if not found:
            return None
        chosen: Point = random.Random(_number(f"{self._seed}/{number}")).choice(found)
        return self._enqueued(number, chosen)

    def _enqueued(self, number: int, point: Point) -> Point:
        """Let Optuna propose just this point."""
        self._study.enqueue_trial({name: to_optuna(value) for name, value in point.items() if name not in self._held})
        return self._sampled(number)


def _number(text: str) -> int:
    """A seed that follows from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _single(space: Space) -> dict[str, Any]:
    """Dimensions with one value."""
    return {one.name: held_value(one, {}) for one in space.dimensions if len(one.choices) == 1 or one.is_point}
