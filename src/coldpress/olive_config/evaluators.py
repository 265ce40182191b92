"""``evaluators``: metrics with goals, of the evaluator that the engine names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldpress import parts
from coldpress.errors import did_you_mean
from coldpress.olive_config.data import MODEL_DATA, DataConfigs
from coldpress.olive_config.reading import Section, value_of
from coldpress.olive_config.tables import Parameter, metric_parameters, metric_table
from coldpress.workflow import Measure

_GOALS = {
    "threshold": ("threshold", False),
    "max-degradation": ("max_degradation", False),
    "min-improvement": ("min_improvement", False),
    "percent-max-degradation": ("max_degradation", True),
    "percent-min-improvement": ("min_improvement", True),
}
_NO_PRIORITY = -1


def read_metrics(root: Section, data: DataConfigs, searches: bool) -> list[dict[str, Any]] | None:
    """The metrics of the engine's evaluator; None when it names none."""
    defined = root.inner("evaluators")
    evaluators = dict(defined.rest())
    used = root.take("evaluator")
    for name in evaluators:
        if name != used:
            root.log.note(defined.place_of(name), "not used by the engine, left out")
    if used is None:
        if searches:
            root.log.refuse(
                "evaluator", "a search without an evaluator has nothing to compare", "name one in engine.evaluator"
            )
        return None
    if not isinstance(used, str | dict):
        root.log.refuse(root.place_of("evaluator"), f"{used!r} is neither the name of an evaluator nor one")
        return None
    if isinstance(used, str) and used not in evaluators:
        root.log.refuse(root.place_of("evaluator"), f"there is no evaluator '{used}'", did_you_mean(used, evaluators))
        return None
    config, place = (
        (evaluators[used], defined.place_of(used)) if isinstance(used, str) else (used, root.place_of("evaluator"))
    )
    measures = _evaluator(Section(config, place, root.log, ("type_args",)), data)
    _rank(measures, searches, place, root)
    return measures


def _evaluator(section: Section, data: DataConfigs) -> list[dict[str, Any]]:
    section.take("name")
    found = [
        one
        for place, item in section.items("metrics")
        for one in _metric(Section(item, place, section.log, ("user_config",)), data)
    ]
    if kind := section.take("type", of=str):
        found += _harness(kind, section)
    section.close("evaluator")
    return found


def _harness(kind: str, section: Section) -> list[dict[str, Any]]:
    """An evaluator that is a program of its own: one metric of ours."""
    known = {name.lower(): entry for name, entry in metric_table("evaluators").items()}
    entry = known.get(kind.lower())
    if entry is None or "instead" in entry:
        hint = entry["instead"] if entry else did_you_mean(kind, metric_table("evaluators"))
        section.log.refuse(section.place_of("type"), f"evaluators of the type {kind} are not there", hint)
        for _ in section.rest():
            pass
        return []
    parameters = _translated(section, metric_parameters("evaluators", "LMEvaluator", "parameters"))
    return _checked(section, {"type": entry["metric"], "parameters": parameters}, DataConfigs())


def _metric(section: Section, data: DataConfigs) -> list[dict[str, Any]]:
    """One metric of Olive's with its sub types, as those of ours that give these numbers."""
    section.take("name")
    kind = section.take("type", "", of=str)
    entry = metric_table("types").get(kind)
    if entry is None or "instead" in entry:
        hint = entry["instead"] if entry else did_you_mean(kind, metric_table("types"))
        problem = (
            f"metrics of the type {kind} cannot be translated" if entry else f"there is no metric of the type '{kind}'"
        )
        section.log.refuse(section.place_of("type"), problem, hint)
        return []
    parameters = _translated(section, metric_parameters("types", kind, "user_config"))
    measures: dict[str, dict[str, dict[str, Any]]] = {}
    for place, item in section.items("sub_types"):
        sub = Section({"name": item} if isinstance(item, str) else item, place, section.log)
        config = sub.inner("metric_config")
        parameters |= _translated(config, metric_parameters("types", kind, "config"))
        config.close("metric_config")
        sub.take("higher_is_better")  # a metric knows which direction is better
        if found := _number(kind, entry, sub):
            measures.setdefault(found[0], {})[found[1]] = _goal(sub)
        sub.close("sub_type")
    batches = _data(section, kind, data)
    section.close("metric")
    made = []
    for name, numbers in (measures or {entry["metric"]: {}}).items():
        own = {**parameters, **_chosen(entry, numbers, batches, data)} if name == entry["metric"] else {}
        made += _checked(section, {"type": name, "parameters": {**own, **batches}, "goals": numbers}, data)
    return made


def _number(kind: str, entry: Mapping[str, Any], sub: Section) -> tuple[str, str] | None:
    """The metric of ours and its number that a sub type is."""
    name = sub.take("name", "", of=str)
    found = entry["numbers"].get(name)
    if isinstance(found, str):
        return entry["metric"], found
    if found and "number" in found:
        return found["metric"], found["number"]
    hint = found["instead"] if found else did_you_mean(name, entry["numbers"])
    sub.log.refuse(sub.place_of("name"), f"{kind} has no '{name}'", hint)
    return None


def _chosen(
    entry: Mapping[str, Any], numbers: Mapping[str, Any], batches: Mapping[str, str], data: DataConfigs
) -> dict[str, Any]:
    """What a metric is told of its numbers, and what outputs mean for its kind of data."""
    found: dict[str, Any] = {"numbers": list(numbers)} if entry.get("named") and numbers else {}
    kind = data.sources[batches["data"]]["type"] if "data" in batches else ""
    task = entry.get("task", {}).get(kind)
    return {**found, "task": task} if task else found


def _goal(sub: Section) -> dict[str, Any]:
    priority = sub.take("priority", _NO_PRIORITY, of=int)
    found: dict[str, Any] = {} if priority == _NO_PRIORITY else {"priority": priority}
    goal = sub.inner("goal")
    kind, value = goal.take("type", of=str), goal.take("value", 0, of=float)
    goal.close("goal")
    if kind is None:
        return found
    if kind not in _GOALS:
        sub.log.refuse(goal.place_of("type"), f"there is no goal of the type '{kind}'", did_you_mean(kind, _GOALS))
        return found
    name, is_share = _GOALS[kind]
    return {**found, name: f"{value:g}%" if is_share else value}


def _data(section: Section, kind: str, data: DataConfigs) -> dict[str, Any]:
    """The data that a metric names; else that beside the model."""
    name = section.take("data_config")
    if name is None:
        return {"data": MODEL_DATA} if kind == "accuracy" and MODEL_DATA in data.sources else {}
    if not isinstance(name, str) or name not in data.sources:
        hint = did_you_mean(str(name), data.sources) if data.sources else "describe it in data_configs"
        section.log.refuse(section.place_of("data_config"), f"there is no data config {name!r}", hint)
        return {}
    return {"data": name}


def _translated(section: Section, known: Mapping[str, Parameter]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parameter in known.items():
        if name not in section:
            section.take(name)
            continue
        value, place = section.take(name), section.place_of(name)
        if parameter.has_no_counterpart:
            section.log.without_counterpart(parameter, value, place)
        else:
            found |= value_of(parameter, value, place, section.log)
    return found


def _checked(section: Section, measure: dict[str, Any], data: DataConfigs) -> list[dict[str, Any]]:
    """The metric, if this version has it and it takes these parameters."""
    kind = measure["type"]
    if kind not in parts.names("metrics"):
        problem = f"this becomes the metric '{kind}', which comes in a later version of coldpress"
        section.log.refuse(section.place, problem, "leave it out")
        return []
    measure = {key: value for key, value in measure.items() if value}
    spelled_out = data.spelled_out(measure.get("parameters", {}))
    section.log.attempt(section.place, lambda: Measure(kind, spelled_out).make(section.place))
    return [measure]


def _rank(measures: list[dict[str, Any]], searches: bool, place: str, root: Section) -> None:
    """In a search some number must rank the results; as in Olive, that is the only one there is, else the first."""
    goals = [(one["type"], name, goal) for one in measures for name, goal in one.get("goals", {}).items()]
    if searches and goals and not any("priority" in goal for *_, goal in goals):
        metric, name, goal = goals[0]
        goal["priority"] = 1
        root.log.note(place, f"no number has a priority: {name} of {metric} ranks the results")
    for one in measures:
        kept = {name: goal for name, goal in one.pop("goals", {}).items() if goal}
        one.update({"goals": kept} if kept else {})
