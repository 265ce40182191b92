"""The end of a search for speed: the best few are measured again, in turns, so that what disturbs the machine disturbs all of them.

A time that was taken once, hours before another, says little. What the finals measured is kept, so that the same search ends
with the same result.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from coldpress import schema
from coldpress.search.evaluate import Bench
from coldpress.search.goals import labels_of, ranking_of
from coldpress.search.run import Found
from coldpress.workflow import Measure

_FINALISTS = 4
_ROUNDS = 3

Rounds = dict[int, dict[str, list[float]]]


def finals(found: Found, measures: tuple[Measure, ...], bench: Bench, folder: Path) -> Rounds:
    """What each round gave for the times of the best points; nothing where no time ranks them, or only one is in question."""
    judge = found.judge
    timed = {one.label for one in ranking_of(judge.objectives) if one.measure.make().is_timed}
    best = found.ranked(_FINALISTS)
    if judge.meets(found.numbers[best[0]]):
        best = [number for number in best if judge.meets(found.numbers[number])]
    if not timed or len(best) < 2:
        return {}
    entrants = {str(number): schema.plain(found.steps(number)) for number in best}
    digest = hashlib.sha256(json.dumps(entrants, sort_keys=True).encode()).hexdigest()
    file = folder / f"finals-{digest}.json"
    if not file.exists():
        written = file.with_suffix(".part")
        written.write_text(json.dumps(_measured(found, best, measures, bench)), encoding="utf-8")
        written.replace(file)
    return {
        int(number): {label: rounds for label, rounds in numbers.items() if label in timed}
        for number, numbers in json.loads(file.read_text(encoding="utf-8")).items()
    }


def _measured(
    found: Found, numbers: list[int], measures: tuple[Measure, ...], bench: Bench
) -> dict[str, dict[str, list[float]]]:
    models = {number: bench.passes(found.steps(number)) for number in numbers}
    taken: dict[str, dict[str, list[float]]] = {str(number): {} for number in numbers}
    for label, measure in zip(labels_of(measures), measures, strict=True):
        if not measure.make().is_timed:
            continue
        for turn in range(_ROUNDS):
            found.request.say(f"{label}: round {turn + 1} of {_ROUNDS} for points {', '.join(map(str, numbers))}")
            for number in numbers if turn % 2 == 0 else reversed(numbers):
                for name, value in bench.measure_anew(models[number], measure).items():
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        taken[str(number)].setdefault(f"{label}.{name}", []).append(float(value))
    return taken
