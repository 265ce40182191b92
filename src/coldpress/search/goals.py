"""What a search is for: numbers with limits and priorities, which point is better, and why the chosen one was
chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts import Value
from coldpress.report import size
from coldpress.workflow import Goal, Measure, labels_of

#: measured numbers by label, such as ``latency.median_ms``
Numbers = Mapping[str, float]
#: whether two points, by their numbers, differ in one measured number by no more than noise
Ties = Callable[[str, int, int], bool]
#: from here on a quick number that misses its limit is taken for hopeless: half of the limit beyond it
_HOPELESS = 0.5


def never(label: str, one: int, other: int) -> bool:
    """The strictest comparison: only equal numbers are a tie."""
    return False


@dataclass(frozen=True)
class Objective:
    """One number that has a goal. ``label`` is ``METRIC.NUMBER``; ``measure`` the metric that gives it."""

    label: str
    measure: Measure
    value: Value
    goal: Goal

    @property
    def is_relative(self) -> bool:
        """Whether the goal is set against the source's number."""
        return self.goal.max_degradation is not None or self.goal.min_improvement is not None

    @property
    def has_limit(self) -> bool:
        return self.goal.threshold is not None or self.is_relative

    @property
    def sign(self) -> int:
        """What makes the number one of which less is better: 1 or -1."""
        return -1 if self.value.better == "higher" else 1

    def limit(self, source: Numbers) -> float | None:
        """The worst number that still meets the goal; None if any does."""
        limits = [] if self.goal.threshold is None else [self.goal.threshold]
        if self.is_relative:
            if self.label not in source:
                raise ColdpressError(
                    f"the goal of {self.label} is set against the source, whose {self.label} is not known",
                    hint="use a threshold, or a metric that can measure the source",
                )
            known = source[self.label]
            allowed, wanted = self.goal.max_degradation, self.goal.min_improvement
            limits += [known + self.sign * _amount(allowed, known)] if allowed is not None else []
            limits += [known - self.sign * _amount(wanted, known)] if wanted is not None else []
        return self.sign * min(self.sign * limit for limit in limits) if limits else None

    def shortfall(self, number: float, source: Numbers) -> float:
        """By how much a number misses the goal, as a share of the limit; 0 for one that meets it."""
        limit = self.limit(source)
        if limit is None:
            return 0.0
        missed = self.sign * (number - limit)
        if math.isnan(missed):
            return math.inf
        return max(0.0, missed) / (abs(limit) or 1.0)

    def said(self, number: float) -> str:
        """The name and the number."""
        return f"{self.label} {self.amount(number)}"

    def amount(self, number: float) -> str:
        """A number with its unit."""
        if self.value.unit == "bytes":
            return size(number)
        return f"{number:.4g}{f' {self.value.unit}' if self.value.unit else ''}"


def objectives_of(measures: Sequence[Measure]) -> list[Objective]:
    """All numbers with goals, the highest priority first. Raises ColdpressError for goals that mean nothing."""
    found = []
    for name, measure in zip(labels_of(measures), measures, strict=True):
        values = measure.make().values
        for number, goal in measure.goals.items():
            if number not in values:
                hint = did_you_mean(number, values)
                raise ColdpressError(f"metrics.{name}.goals: {measure.type} gives no number '{number}'", hint=hint)
            if values[number].better not in ("lower", "higher"):
                better = [one for one, value in values.items() if value.better != "neither"]
                raise ColdpressError(
                    f"metrics.{name}.goals.{number}: neither more nor less of it is better, so it can have no goal",
                    hint=f"numbers with a direction: {', '.join(better)}" if better else None,
                )
            _check(goal, f"metrics.{name}.goals.{number}")
            found.append(Objective(f"{name}.{number}", measure, values[number], goal))
    return sorted(found, key=lambda one: one.goal.priority if one.goal.priority is not None else math.inf)


def ranking_of(objectives: Sequence[Objective]) -> list[Objective]:
    """The numbers that rank points: those with a priority, or all if none has one."""
    return [one for one in objectives if one.goal.priority is not None] or list(objectives)


def _check(goal: Goal, where: str) -> None:
    if goal.priority is not None and goal.priority < 1:
        raise ColdpressError(f"{where}.priority: {goal.priority} is no priority", hint="1 counts most, then 2, 3, ...")
    for name in ("max_degradation", "min_improvement"):
        amount = getattr(goal, name)
        if amount is not None:
            _parsed(amount, f"{where}.{name}")


def _parsed(amount: float | str, where: str) -> tuple[float, bool]:
    """An amount and whether it is a share."""
    text = str(amount).strip()
    is_share = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ColdpressError(f"{where}: {amount!r} is no number from 0 up", hint="write 0.01, or '1%' of the source's")
    return (number / 100 if is_share else number), is_share


def _amount(amount: float | str, source: float) -> float:
    number, is_share = _parsed(amount, "goal")
    return number * abs(source) if is_share else number


@dataclass(frozen=True)
class Judge:
    """Compares points by ``objectives``; ``source`` holds the source's numbers."""

    objectives: Sequence[Objective]
    source: Numbers
    ties: Ties = never

    def shortfalls(self, numbers: Numbers) -> dict[str, float]:
        """By how much each known number misses its goal."""
        return {
            one.label: one.shortfall(numbers[one.label], self.source) for one in self.objectives if one.label in numbers
        }

    def meets(self, numbers: Numbers) -> bool:
        """Whether all numbers are known and all goals met."""
        found = self.shortfalls(numbers)
        return len(found) == len(self.objectives) and not any(found.values())

    def missed(self, numbers: Numbers, source: Numbers | None = None, slack: float = 0.0) -> str | None:
        """The first goal that a known number misses by more than ``slack`` of its limit, in words."""
        known = self.source if source is None else source
        for one in self.objectives:
            if one.label in numbers and one.shortfall(numbers[one.label], known) > slack:
                limit = one.limit(known)
                side = "above" if one.sign > 0 else "below"
                return f"{one.said(numbers[one.label])} is {side} the limit {one.amount(limit or 0.0)}"
        return None

    def hopeless(self, numbers: Numbers, source: Numbers) -> str | None:
        """As `missed`, for numbers of a quick look, whose noise is given room."""
        return self.missed(numbers, source, _HOPELESS)

    def ranked(self, points: Mapping[int, Numbers], count: int) -> list[int]:
        """The best ``count`` points, best first: those that meet all goals, then those that miss them least.

        Among them the number with the first priority decides; where points tie with the best in it, the next, and so
        on. Points that lack a number come last.
        """
        left = dict(points)
        ranked: list[int] = []
        while left and len(ranked) < count:
            ranked.append(self._best(left))
            del left[ranked[-1]]
        return ranked

    def _best(self, points: Mapping[int, Numbers]) -> int:
        found = list(points)
        for key in (self._unknown, self._distance):
            least = min(key(points[index]) for index in found)
            found = [index for index in found if key(points[index]) == least]
        for one in ranking_of(self.objectives):
            found = self._tied(one, found, points)
        return found[0]

    def _tied(self, one: Objective, found: list[int], points: Mapping[int, Numbers]) -> list[int]:
        """Those of the points that tie with the best in one number."""
        known = [index for index in found if one.label in points[index]]
        if not known:
            return found
        best = min(known, key=lambda index: one.sign * points[index][one.label])
        return [i for i in known if self._is_tie(one.label, points, i, best)]

    def _is_tie(self, label: str, points: Mapping[int, Numbers], one: int, other: int) -> bool:
        return points[one][label] == points[other][label] or self.ties(label, one, other)

    def _unknown(self, numbers: Numbers) -> int:
        return sum(one.label not in numbers for one in self.objectives)

    def _distance(self, numbers: Numbers) -> float:
        return sum(self.shortfalls(numbers).values())

    def front(self, points: Mapping[int, Numbers]) -> list[int]:
        """The points that no other is at least as good as in all numbers that rank, and better in one."""
        ranking = ranking_of(self.objectives)
        rows = {
            index: tuple(one.sign * numbers[one.label] for one in ranking)
            for index, numbers in points.items()
            if all(one.label in numbers for one in ranking)
        }
        front: dict[int, tuple[float, ...]] = {}
        for index, row in sorted(rows.items(), key=lambda item: item[1]):  # whoever dominates comes first
            if not any(_dominates(other, row) for other in front.values()):
                front[index] = row
        return sorted(front)

    def why(self, chosen: int, points: Mapping[int, Numbers]) -> str:
        """Why a point was chosen, in a sentence or two."""
        numbers, ranking = points[chosen], ranking_of(self.objectives)
        facts = [self._compared(one, numbers) for one in ranking if one.label in numbers]
        if not self.meets(numbers):
            lacks = self.missed(numbers) or "not all of its numbers are known"
            return f"No point meets all goals; point {chosen} comes nearest: {lacks}. It has {_and(facts)}."
        rivals = [index for index, other in points.items() if self.meets(other)]
        if len(rivals) == 1:
            return f"Point {chosen} is the only one that meets all goals. It has {_and(facts)}."
        first = ranking[0]
        said = (
            f"Of {len(rivals)} points that meet all goals, point {chosen} has the best {first.label}: it has"
            f" {_and(facts)}."
        )
        tied = [index for index in self._tied(first, rivals, points) if index != chosen]
        if tied:
            decided = "the next priorities decided" if len(ranking) > 1 else "the first was taken"
            said += f" {_listed(tied)} no worse in {first.label}, within the noise; {decided}."
        return said

    def _compared(self, one: Objective, numbers: Numbers) -> str:
        said, before = one.said(numbers[one.label]), self.source.get(one.label)
        return f"{said} (source {one.amount(before)})" if before is not None else said


def _and(facts: Sequence[str]) -> str:
    return " and ".join([", ".join(facts[:-1]), facts[-1]] if len(facts) > 1 else facts)


def _dominates(one: Iterable[float], other: Iterable[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _listed(points: Sequence[int], shown: int = 5) -> str:
    names = ", ".join(map(str, points[:shown]))
    more = f" and {len(points) - shown} more" if len(points) > shown else ""
    return f"Point {names} is" if len(points) == 1 else f"Points {names}{more} are"


def numbers_of(name: str, measured: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of a metric under their labels."""
    return {
        f"{name}.{key}": float(value)
        for key, value in measured.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
