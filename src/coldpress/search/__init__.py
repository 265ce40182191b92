"""Search: the best passes and parameters for goals, out of all that a workflow leaves open.

`prepare` checks a request whole, before any work; `search` does it. The engine lends what does the work (`Bench`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import schema
from coldpress.search.check import check_passes
from coldpress.search.evaluate import Bench, Evaluator
from coldpress.search.finals import finals
from coldpress.search.goals import Judge, Numbers, Objective, numbers_of, objectives_of, ranking_of
from coldpress.search.history import History
from coldpress.search.run import PASS_BY_PASS, Found, Request, Say, check_search, run
from coldpress.search.space import Space
from coldpress.search.trials import FAILED, Trial
from coldpress.workflow import Measure, Search, Step, Workflow, labels_of

__all__ = [
    "JOURNAL",
    "Bench",
    "Found",
    "Prepared",
    "check_goals",
    "goals_by",
    "prepare",
    "reached_goals",
    "search",
    "section",
]

#: Optuna's file with all trials
JOURNAL = "optuna.journal"


@dataclass(frozen=True)
class Prepared:
    """A search that was checked: nothing of it is wrong as far as can be told before any work."""

    space: Space
    search: Search
    measures: tuple[Measure, ...]
    objectives: tuple[Objective, ...]
    seed: int
    workers: int

    @property
    def facts(self) -> dict[str, Any]:
        """What decides which points are tried, beside passes and metrics.

        More trials, or more time, go on from fewer.
        """
        search = self.search
        return {
            "sampler": [search.sampler, search.sampler_parameters, parts.find("samplers", search.sampler).version],
            "order": [search.order, search.trials if search.order == PASS_BY_PASS else None],
            "first_look": search.first_look,
            "seed": self.seed,
            "workers": self.workers,
            "goals": [[one.label, schema.plain(one.goal)] for one in self.objectives],
        }


def prepare(workflow: Workflow, steps: Sequence[Step], source: Model | Planned) -> Prepared:
    """Check a workflow's search. ``steps`` are its passes with those that the source's format needs.

    Raises ColdpressError for whatever can be told to be wrong: nothing to search, passes that do not fit, goals that
    mean nothing.
    """
    space = Space.of(steps)
    asked = workflow.search or Search(sampler="grid")
    check_search(space, asked)
    objectives = check_goals(workflow, source, check_passes(space, source, workflow.target))
    if not objectives:
        raise ColdpressError(
            "a search needs goals, and no metric has one",
            hint="give a number of a metric a goal, such as {type: size, goals: {model_bytes: {priority: 1}}}",
        )
    measures, workers = tuple(workflow.metrics or ()), workflow.system.make().workers
    return Prepared(space, asked, measures, tuple(objectives), workflow.seed, workers)


def check_goals(workflow: Workflow, source: Model | Planned, formats: set[str]) -> list[Objective]:
    """The goals of a workflow. ``formats``: those that the result may have.

    Raises ColdpressError for metrics that cannot measure the result, and goals that mean nothing.
    """
    measures = tuple(workflow.metrics or ())
    for label, measure in zip(labels_of(measures), measures, strict=True):
        _check_metric(label, measure, formats)
    objectives = objectives_of(measures)
    for one in objectives:
        if one.is_relative and not _measurable(one.measure, source):
            raise ColdpressError(
                f"the goal of {one.label} is set against the source, and {one.measure.type} cannot measure a model in"
                f" the format {source.format}",
                hint="use a threshold, or start from a model in a format that it takes",
            )
    return objectives


def _check_metric(label: str, measure: Measure, formats: set[str]) -> None:
    made = measure.make()
    parts.check_needs(type(made))
    if wrong := sorted(formats - set(made.accepts)):
        raise ColdpressError(
            f"metrics.{label} takes {' or '.join(made.accepts)}, but the passes may give {wrong[0]}",
            hint="add a pass that makes such a model, or leave out the metric",
        )


def _measurable(measure: Measure, model: Model | Planned) -> bool:
    return model.format in measure.make().accepts


def search(prepared: Prepared, source: Model, bench: Bench, folder: Path, say: Say) -> Found:
    """Do a search for the passes of ``source``. ``folder`` holds its history, from which it goes on."""
    judge = Judge(prepared.objectives, _source_numbers(prepared, source, bench, say))
    evaluate = Evaluator(bench, prepared.measures, judge, source, prepared.search.first_look)
    directions = {one.label: one.sign > 0 for one in ranking_of(prepared.objectives)}
    history = History(folder / JOURNAL, directions, prepared.space.dimensions)
    request = Request(prepared.space, prepared.search, judge, evaluate, prepared.seed, say, prepared.workers)
    found = run(request, history)
    return replace(found, finals=finals(found, prepared.measures, source, bench, folder))


def _source_numbers(prepared: Prepared, source: Model, bench: Bench, say: Say) -> dict[str, float]:
    """What the metrics give for the source; a failure matters only where a goal is set against it."""
    found: dict[str, float] = {}
    for label, measure in zip(labels_of(prepared.measures), prepared.measures, strict=True):
        if not _measurable(measure, source):
            continue
        try:
            found |= numbers_of(label, bench.measure(source, measure))
        except ColdpressError as error:
            if any(one.is_relative for one in prepared.objectives if one.measure is measure):
                raise
            say(f"{label} of the source is not known: {error.message}")
    return found


def reached_goals(
    workflow: Workflow,
    measured: Mapping[str, Mapping[str, Any]],
    of_source: Callable[[Measure], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Each goal of a workflow with the number that was reached.

    ``measured``: the numbers of each metric by its label.
    """
    objectives = objectives_of(workflow.metrics or ())
    source: dict[str, float] = {}
    for one in objectives:
        if one.is_relative and one.label not in source:
            source |= numbers_of(one.label.rpartition(".")[0], of_source(one.measure))
    numbers = {key: value for label, values in measured.items() for key, value in numbers_of(label, values).items()}
    return goals_by(Judge(objectives, source), numbers)


def goals_by(judge: Judge, numbers: Numbers) -> list[dict[str, Any]]:
    """Each goal with the number that was reached; one that was not measured is not met."""
    missed = judge.shortfalls(numbers)
    return [
        {**_objective(one, judge), "value": numbers.get(one.label), "met": missed.get(one.label, 1.0) == 0.0}
        for one in judge.objectives
    ]


def section(found: Found, chosen: int, kept: Mapping[int, str]) -> dict[str, Any]:
    """What a report says of a search. ``kept``: the folders of points, relative to the output."""
    request, numbers = found.request, found.numbers
    judge, asked = request.judge, request.search
    last_judge, last = found.best_known(chosen)
    return {
        "sampler": asked.sampler,
        "order": asked.order,
        "seed": request.seed,
        "stopped": found.stopped,
        "seconds": found.seconds,
        "size": request.space.size(),
        "parameters": [one.name for one in request.space.dimensions],
        "objectives": [_objective(one, judge) for one in judge.objectives],
        "source": dict(judge.source),
        "points": [_point(trial, found) for trial in found.trials],
        "front": judge.front(numbers),
        "finals": {"source" if number is None else str(number): dict(one) for number, one in found.finals.items()},
        "ranking": found.ranked(_RANKED),
        "chosen": chosen,
        "meets_goals": last_judge.meets(last),
        "why": found.why(chosen),
        "kept": {str(number): folder for number, folder in kept.items()},
    }


#: a ranking longer than this helps nobody
_RANKED = 100


def _objective(one: Objective, judge: Judge) -> dict[str, Any]:
    limit = one.limit(judge.source)
    return {
        "number": one.label,
        "better": one.value.better,
        "unit": one.value.unit,
        "priority": one.goal.priority,
        "limit": limit,
        "goal": {name: value for name, value in schema.plain(one.goal).items() if value is not None},
    }


def _point(trial: Trial, found: Found) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state,
        "parameters": dict(trial.point),
        "passes": schema.plain(found.steps(trial.number)),
        "numbers": dict(trial.numbers),
        "meets_goals": trial.state != FAILED and found.request.judge.meets(trial.numbers),
        "reason": trial.reason,
        "traceback": trial.traceback,
        "seconds": trial.seconds,
    }
