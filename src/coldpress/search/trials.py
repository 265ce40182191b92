"""A point that was tried, and its form in Optuna: parameters, objectives, constraints and notes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coldpress.search.space import Dimension, Point

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState
    from optuna.trial import Trial as OptunaTrial

COMPLETE, DROPPED, FAILED = "complete", "dropped", "failed"
_STATES = {COMPLETE: "COMPLETE", DROPPED: "PRUNED", FAILED: "FAIL"}
_FACTS = "coldpress"


@dataclass(frozen=True)
class Trial:
    """One point that was tried.

    ``number`` counts from 0 in the order of the search; ``stage`` is the slot that was searched.

    ``state``: complete; dropped after a first look; failed. ``numbers`` are those measured, by label; ``reason`` says
    why it is not complete, with the ``traceback`` of a failure. ``shortfalls``: by how much each known number misses
    its goal.
    """

    number: int
    point: Point
    state: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    stage: int | None = None
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0
    shortfalls: Mapping[str, float] = field(default_factory=dict)


def frozen_trial(trial: Trial, dimensions: Iterable[Dimension], objectives: Iterable[str]) -> FrozenTrial:
    """A trial as Optuna keeps it, with the values of some dimensions."""
    from optuna.trial import create_trial

    known = {one.name: one for one in dimensions if one.name in trial.point}
    facts = {name: getattr(trial, name) for name in ("number", "stage", "reason", "traceback", "seconds")}
    return create_trial(
        state=state_of(trial.state),
        values=[trial.numbers[label] for label in objectives] if trial.state == COMPLETE else None,
        params={name: to_optuna(trial.point[name]) for name in known},
        distributions={name: _distribution(one) for name, one in known.items()},
        user_attrs={**trial.numbers, _FACTS: facts},
        constraints=dict(trial.shortfalls),
    )


def thawed_trial(frozen: FrozenTrial, dimensions: Iterable[Dimension]) -> Trial:
    """The trial that `frozen_trial` was given."""
    numbers = dict(frozen.user_attrs)
    facts = numbers.pop(_FACTS)
    params = frozen.params
    point = {one.name: _from_optuna(params[one.name], one) for one in dimensions if one.name in params}
    state = next(state for state, name in _STATES.items() if name == frozen.state.name)
    return Trial(point=point, state=state, numbers=numbers, shortfalls=frozen.constraints, **facts)


def state_of(state: str) -> TrialState:
    from optuna.trial import TrialState

    return TrialState[_STATES[state]]


def new_study(objectives: Mapping[str, bool], **place: Any) -> Study:
    """A study whose ``objectives`` are named, each with whether less of it is better; ``place``: where it is kept."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = optuna.study.StudyDirection
    directions = [
        direction.MINIMIZE if is_less_better else direction.MAXIMIZE for is_less_better in objectives.values()
    ]
    return optuna.create_study(directions=directions, **place)


def suggested(asked: OptunaTrial, dimension: Dimension) -> Any:
    """The value that Optuna suggests for a dimension."""
    found = _distribution(dimension)
    if dimension.choices:
        return _from_optuna(asked.suggest_categorical(dimension.name, found.choices), dimension)  # type: ignore[attr-defined]
    suggest = asked.suggest_int if dimension.whole else asked.suggest_float
    return suggest(dimension.name, found.low, found.high, step=found.step, log=found.log)  # type: ignore[attr-defined]


def to_optuna(value: Any) -> Any:
    """A value as Optuna can store it: lists and mappings as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)


def _from_optuna(value: Any, dimension: Dimension) -> Any:
    return next((choice for choice in dimension.choices if to_optuna(choice) == value), value)


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution([to_optuna(choice) for choice in dimension.choices])
    if dimension.whole:
        step = 1 if dimension.log else int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
