"""What one point is worth: its passes, a cheap look at what they made, and the full measurements."""

from __future__ import annotations

import errno
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.model import Model
from coldpress.search.goals import Judge, Numbers, numbers_of
from coldpress.search.trials import COMPLETE, DROPPED, FAILED
from coldpress.workflow import Measure, Step, labels_of


@dataclass(frozen=True)
class Bench:
    """Where the work is done: ``passes`` turns the source into a model, ``measure`` gives the numbers of a metric.

    ``measure_anew`` measures whatever is known already.
    """

    passes: Callable[[tuple[Step, ...]], Model]
    measure: Callable[[Model, Measure], Mapping[str, Any]]
    measure_anew: Callable[[Model, Measure], Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """The state of a finished trial, its numbers, and why it is not complete."""

    state: str
    numbers: Numbers = field(default_factory=dict)
    reason: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Evaluator:
    """Tries points.

    ``source`` is what relative goals compare with; ``first_look``: whether hopeless points are dropped early.
    """

    bench: Bench
    measures: Sequence[Measure]
    judge: Judge
    source: Model
    first_look: bool = True

    def __call__(self, steps: tuple[Step, ...]) -> Outcome:
        """Try the passes of a point; whatever goes wrong with it becomes its outcome."""
        try:
            return self._tried(steps)
        except Exception as error:  # the search goes on without this point
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            reason = error.message if isinstance(error, ColdpressError) else f"{type(error).__name__}: {error}"
            return Outcome(FAILED, {}, reason, traceback.format_exc())

    def _tried(self, steps: tuple[Step, ...]) -> Outcome:
        model = self.bench.passes(steps)
        cheap = [(label, one) for label, one in self._labelled if not one.make().runs_model]
        numbers = self._numbers(model, cheap)
        if self.first_look:
            reason = self.judge.missed(numbers) or self._hopeless(model)
            if reason:
                return Outcome(DROPPED, numbers, reason)
        numbers |= self._numbers(model, [pair for pair in self._labelled if pair not in cheap])
        for one in self.judge.objectives:
            if not math.isfinite(numbers.get(one.label, math.nan)):
                given = numbers.get(one.label, "no number")
                raise ColdpressError(f"{one.label}: {one.measure.type} gave {given}", exit_code=WORK_FAILED)
        return Outcome(COMPLETE, numbers)

    @property
    def _labelled(self) -> list[tuple[str, Measure]]:
        return list(zip(labels_of(self.measures), self.measures, strict=True))

    def _numbers(self, model: Model, measures: Sequence[tuple[str, Measure]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for label, measure in measures:
            found |= numbers_of(label, self.bench.measure(model, measure))
        return found

    def _hopeless(self, model: Model) -> str | None:
        """Why a few batches already show that a goal cannot be met; None if they do not."""
        for label, measure in self._labelled:
            own = [one for one in self.judge.objectives if one.measure is measure and one.has_limit]
            quick = dict(measure.make().quick)
            if not own or not quick:
                continue
            look = replace(measure, parameters={**measure.parameters, **quick})
            relative = any(one.is_relative for one in own)
            source = self._numbers(self.source, [(label, look)]) if relative else {}
            judge = replace(self.judge, objectives=own)
            reason = judge.hopeless(self._numbers(model, [(label, look)]), source)
            if reason:
                return f"{reason}, in a first look"
        return None
