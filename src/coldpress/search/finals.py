"""The end of a search for speed: the best few are measured again, in turns, so that what disturbs the machine disturbs
all of them.

A time that was taken once, hours before another, says little. What the finals measured is kept, so that the same search
ends with the same result.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from coldpress.measuring.noise import turn
from coldpress.models.model import Model
from coldpress.parts import schema
from coldpress.search.evaluate import Bench
from coldpress.search.goals import numbers_of, ranking_of
from coldpress.search.run import Found, Say
from coldpress.workflow import Measure, labels_of

_FINALISTS = 4
_ROUNDS = 3

Rounds = dict[str, list[float]]


def finals(
    found: Found, measures: tuple[Measure, ...], source: Model, bench: Bench, folder: Path
) -> dict[int | None, Rounds]:
    """What each round gave for the times of the best points, and under None for the source where goals are set against
    it.

    Nothing where no time ranks them, or only one is in question.
    """
    judge, numbers = found.request.judge, found.numbers
    timed = [one for one in judge.objectives if one.measure.make().is_timed]
    best = found.ranked(_FINALISTS)
    if judge.meets(numbers[best[0]]):
        best = [number for number in best if judge.meets(numbers[number])]
    if len(best) < 2 or not any(one in ranking_of(judge.objectives) for one in timed):
        return {}
    entrants = {str(number): schema.plain(found.steps(number)) for number in best}
    digest = hashlib.sha256(json.dumps(entrants, sort_keys=True).encode()).hexdigest()
    file = folder / f"finals-{digest}.json"
    if not file.exists():
        models = {str(number): bench.passes(found.steps(number)) for number in best}
        if any(one.is_relative for one in timed):
            models[_SOURCE] = source
        written = file.with_suffix(".part")
        written.write_text(json.dumps(_measured(models, measures, bench, found.request.say)), encoding="utf-8")
        written.replace(file)
    labels = {one.label for one in timed}
    taken = json.loads(file.read_text(encoding="utf-8"))
    return {
        None if number == _SOURCE else int(number): {label: rounds for label, rounds in one.items() if label in labels}
        for number, one in taken.items()
    }


_SOURCE = "source"


def _measured(models: dict[str, Model], measures: tuple[Measure, ...], bench: Bench, say: Say) -> dict[str, Rounds]:
    """The rounds of every number of the metrics that take times, for each model."""
    taken: dict[str, Rounds] = {name: {} for name in models}
    for label, measure in zip(labels_of(measures), measures, strict=True):
        if not measure.make().is_timed:
            continue
        for number in range(_ROUNDS):
            say(f"{label}: round {number + 1} of {_ROUNDS} for points {', '.join(models)}")
            for name in turn(list(models), number):
                for key, value in numbers_of(label, bench.measure_anew(models[name], measure)).items():
                    taken[name].setdefault(key, []).append(value)
    return taken
