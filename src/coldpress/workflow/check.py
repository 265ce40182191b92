"""Whether a request names parts that there are, with parameters and data that they take: all that needs no model and no
file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts import schema
from coldpress.parts.schema import Misfit
from coldpress.workflow import OPEN, Step, Workflow, is_open


def check(workflow: Workflow) -> Workflow:
    """The workflow with its data where it is named, if every part in it exists and takes its parameters.

    Raises Misfit with the path otherwise.
    """
    workflow = resolve_data(workflow)
    for name, source in workflow.data.items():
        with _placed(f"data.{name}.type"):
            schema.build(parts.find("data", source.type), source.parameters, f"data.{name}.parameters")
    for index, step in enumerate(workflow.passes):
        check_step(step, f"passes[{index}]")
    for index, measure in enumerate(workflow.metrics or ()):
        with _placed(f"metrics[{index}].type"):
            _check_data(measure.make(f"metrics[{index}].parameters"), f"metrics[{index}].parameters")
        if measure.system is not None:
            with _placed(f"metrics[{index}].system.type"):
                measure.system.make(f"metrics[{index}].system.parameters")
    with _placed("system.type"):
        workflow.system.make("system.parameters")
    return workflow


def check_step(step: Step, where: str, inside: str = "") -> None:
    """Raise Misfit unless the step's pass, or each of its alternatives, exists and takes its parameters.

    ``where`` is the path to the step, ``inside`` that to its parameters, if it is not below.
    """
    if step.any_of:
        if step.type or step.parameters:
            raise Misfit(where, "a step has either a type or any_of, not both", "put the pass among the alternatives")
        for index, alternative in enumerate(step.any_of):
            check_step(alternative, f"{where}.any_of[{index}]")
        return
    if not step.type:
        raise Misfit(where, "this step names no pass", "give it a type; `coldpress list` shows them")
    inside = inside or f"{where}.parameters"
    for parameters in _points(step.parameters, inside):
        with _placed(f"{where}.type"):
            _check_data(Step(step.type, parameters).make(inside), inside)


def _check_data(made: parts.Pass | parts.Metric, inside: str) -> None:
    """Raise ColdpressError unless the data of a pass or metric is of a kind that there is and takes its parameters."""
    for name in parts.data_fields(type(made)):
        if (source := getattr(made, name)) is not None:
            source.make(f"{inside}.{name}")


def _points(parameters: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Parameters with each open one filled, so that every value a search could pick occurs once."""
    values = {name: _values(value, f"{where}.{name}") for name, value in parameters.items() if is_open(value)}
    first = {**parameters, **{name: found[0] for name, found in values.items()}}
    yield first
    for name, found in values.items():
        for value in found[1:]:
            yield {**first, name: value}


def _values(value: Mapping[str, Any], where: str) -> list[Any]:
    form = next(form for form in OPEN if form in value)
    found = value[form]
    if not isinstance(found, list | tuple) or not found:
        raise Misfit(f"{where}.{form}", "there is nothing to pick from", "give a list of values")
    return list(found)


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Give errors that have no place yet this one."""
    try:
        yield
    except Misfit:
        raise
    except ColdpressError as error:
        raise Misfit(where, error.message, error.hint) from None


def resolve_data(workflow: Workflow) -> Workflow:
    """The workflow with the data itself wherever a pass or a metric names an entry of ``data``.

    Raises ColdpressError for a name that is no entry.
    """
    metrics = workflow.metrics
    return replace(
        workflow,
        passes=_with_data(workflow.passes, "passes", workflow.data),
        metrics=None if metrics is None else _with_data(metrics, "metrics", workflow.data),
    )


def _with_data(named: tuple[Any, ...], where: str, data: Mapping[str, parts.DataSource]) -> tuple[Any, ...]:
    """Steps, their alternatives too, or measures, with data in place of its names."""
    found = []
    for index, part in enumerate(named):
        place = f"{where}[{index}]"
        if isinstance(part, Step) and part.any_of:
            found.append(replace(part, any_of=_with_data(part.any_of, f"{place}.any_of", data)))
            continue
        fields_of_data = _data_fields("passes" if isinstance(part, Step) else "metrics", part.type)
        given = {name: part.parameters[name] for name in fields_of_data if part.parameters.get(name) is not None}
        known = {name: _named_data(value, data, f"{place}.parameters.{name}") for name, value in given.items()}
        found.append(replace(part, parameters={**part.parameters, **known}))
    return tuple(found)


def _data_fields(kind: str, name: str) -> tuple[str, ...]:
    try:
        return parts.data_fields(parts.find(kind, name))
    except ColdpressError:
        return ()  # `check` says which part there is not, and where


def _named_data(value: Any, data: Mapping[str, parts.DataSource], where: str) -> Any:
    """A name as the data that it stands for, also among the values of an open parameter; all else as it is."""
    if isinstance(value, Mapping) and isinstance(value.get("choice"), list | tuple):
        return {**value, "choice": [_named_data(one, data, where) for one in value["choice"]]}
    if not isinstance(value, str):
        return schema.plain(value)
    if value not in data:
        hint = did_you_mean(value, data) if data else "describe it under 'data', with a type and parameters"
        raise Misfit(where, f"there is no data '{value}' in the workflow", hint)
    return schema.plain(data[value])
