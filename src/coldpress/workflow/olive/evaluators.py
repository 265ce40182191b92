"""``evaluators``: metrics with goals, of the evaluator that the engine names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.workflow import Measure
from coldpress.workflow.olive.data import MODEL_DATA, DataConfigs, arguments_of
from coldpress.workflow.olive.models import resource
from coldpress.workflow.olive.reading import ANYWAY, Origin, Section, Taken, in_its_words, value_of
from coldpress.workflow.olive.tables import Parameter, metric_parameters, metric_table

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
    for name, config in evaluators.items():
        if name != used:
            root.log.left_out(defined.place_of(name), "not used by the engine, left out", config)
    if used is None:
        if searches:
            hint = "name one in engine.evaluator"
            root.log.refuse("evaluator", "a search without an evaluator has nothing to compare", hint)
        return None
    if not isinstance(used, str | dict):
        root.log.refuse(root.place_of("evaluator"), f"{used!r} is neither the name of an evaluator nor one")
        return None
    if isinstance(used, str) and used not in evaluators:
        hint = did_you_mean(used, evaluators) if evaluators else "describe it in evaluators"
        root.log.refuse(root.place_of("evaluator"), f"there is no evaluator '{used}'", hint)
        return None
    config, place = (
        (evaluators[used], defined.place_of(used)) if isinstance(used, str) else (used, root.place_of("evaluator"))
    )
    measures = _evaluator(Section(config, place, root.log, ("type_args",)), data)
    measures = _each_once(measures, place, root)
    _rank(measures, searches, place, root)
    return measures


def _each_once(measures: list[dict[str, Any]], place: str, root: Section) -> list[dict[str, Any]]:
    """Metrics without their repetitions."""
    found: list[dict[str, Any]] = []
    for one in measures:
        if one not in found:
            found.append(one)
        else:
            root.log.note(f"{place}.metrics", f"two ask for the same numbers of {one['type']}, which is measured once")
    return found


def _evaluator(section: Section, data: DataConfigs) -> list[dict[str, Any]]:
    if section.take("name") is not None:
        section.log.note(section.place_of("name"), "no effect here: an evaluator has the name under which it stands")
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
        section.leave(f"not read, as it is {kind}'s")
        return []
    taken = Taken(section.log)
    _take(section, metric_parameters("evaluators", "LMEvaluator", "parameters"), taken)
    return _checked(section, {"type": entry["metric"], "parameters": taken.parameters}, taken.origins, DataConfigs())


def _metric(section: Section, data: DataConfigs) -> list[dict[str, Any]]:
    """One metric of Olive's with its sub types, as those of ours that give these numbers."""
    if section.take("name") is not None:
        section.log.note(section.place_of("name"), "no effect here: numbers have the names of coldpress's metrics")
    kind = section.take("type", "", of=str)
    if kind == "custom" and "evaluate_func" in section:
        return _custom(section, data)
    scripted = _scripted(section, data)
    entry = metric_table("types").get(kind)
    if entry is None or "instead" in entry:
        hint = entry["instead"] if entry else did_you_mean(kind, metric_table("types"))
        problem = (
            f"metrics of the type {kind} cannot be translated" if entry else f"there is no metric of the type '{kind}'"
        )
        section.log.refuse(section.place_of("type"), problem, hint)
        section.leave("not read")
        return []
    taken = Taken(section.log)
    _take(section, metric_parameters("types", kind, "user_config"), taken)
    measures = _sub_types(section, kind, entry, taken)
    if set(measures) == {entry["metric"]} and not entry.get("named") and not any(measures[entry["metric"]].values()):
        section.anyway("sub_types")
    batches = scripted.batches or _data(section, kind, data)
    reader = {**data.readers.get(batches.get("data", ""), {}), **scripted.reader} if kind == "accuracy" else {}
    section.close("metric")
    made_of: list[dict[str, Any]] = []
    for name, numbers in (measures or {entry["metric"]: {}}).items():
        chosen = {**_chosen(entry, numbers, batches, data), **reader}
        own = {**taken.parameters, **chosen} if name == entry["metric"] else {}
        measure = {"type": name, "parameters": {**own, **batches}, "goals": numbers}
        made_of += _checked(section, measure, taken.origins if own else {}, data)
    return made_of


@dataclass(frozen=True)
class _Scripted:
    """What functions of a script do for a metric: make ``batches``, and read answers off outputs (``reader``)."""

    batches: dict[str, str] = field(default_factory=dict)
    reader: dict[str, Any] = field(default_factory=dict)


def _scripted(section: Section, data: DataConfigs) -> _Scripted:
    """What a metric's own functions do; its data is added to the others under the name of its function."""
    if "user_script" not in section:
        return _Scripted()
    script, reader = section.take("user_script", of=str), {}
    name = data.of_function(section)
    if function := section.take("post_processing_func", of=str):
        given = arguments_of(section, "post_processing_func")
        reader = {"script": script, "function": function, **({"arguments": given} if given else {})}
    if name is None and not reader:
        section.log.note(section.place_of("user_script"), "no effect: the metric names no function of it")
    return _Scripted({"data": name} if name else {}, reader)


def _custom(section: Section, data: DataConfigs) -> list[dict[str, Any]]:
    """A function of a script that evaluates a model, as a metric of the type custom."""
    if "user_script" not in section:
        place = section.place_of("evaluate_func")
        section.log.refuse(place, "nothing says which file the function is in", "name it in user_script")
        section.leave("not read")
        return []
    better, goals = {}, {}
    for place, item in section.items("sub_types"):
        sub = Section({"name": item} if isinstance(item, str) else item, place, section.log)
        name = sub.take("name", "value", of=str)
        better[name] = "higher" if sub.take("higher_is_better", False, of=bool) else "lower"
        goals[name] = _goal(sub)
        sub.close("sub_type")
    found = {
        "script": section.take("user_script", of=str),
        "script_dir": section.take("script_dir", of=str),
        "evaluate_func": section.take("evaluate_func", of=str),
        "data_dir": resource(section.take("data_dir"), section.place_of("data_dir"), section.log, {}) or None,
        "batch_size": section.take("batch_size", of=int),
        "arguments": arguments_of(section, "evaluate_func"),
        "numbers": better,
    }
    section.close("metric")
    parameters = {key: value for key, value in found.items() if value not in (None, {})}
    return _checked(section, {"type": "custom", "parameters": parameters, "goals": goals}, {}, data)


def _sub_types(
    section: Section, kind: str, entry: Mapping[str, Any], taken: Taken
) -> dict[str, dict[str, dict[str, Any]]]:
    """Our metrics -> their numbers -> the goals of these; what sub types say of the whole metric goes to ``taken``."""
    measures: dict[str, dict[str, dict[str, Any]]] = {}
    for place, item in section.items("sub_types"):
        sub = Section({"name": item} if isinstance(item, str) else item, place, section.log)
        config = sub.inner("metric_config", ("compute_params", "compute_param"))
        _take(config, metric_parameters("types", kind, "config"), taken)
        config.close("metric_config")
        if "higher_is_better" in sub:
            sub.take("higher_is_better")
            section.log.note(
                sub.place_of("higher_is_better"), "no effect here: a metric knows which direction is better"
            )
        if found := _number(kind, entry, sub):
            numbers = measures.setdefault(found[0], {})
            if found[1] in numbers:
                section.log.note(place, f"no effect: an earlier sub type of this metric is {found[1]}, too", item)
            numbers.setdefault(found[1], _goal(sub))
        sub.close("sub_type")
    return measures


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
    sub.leave("not read")
    return None


def _chosen(
    entry: Mapping[str, Any], numbers: Mapping[str, Any], batches: Mapping[str, str], data: DataConfigs
) -> dict[str, Any]:
    """What a metric is told of its numbers, and what outputs mean for its kind of data."""
    found: dict[str, Any] = {"numbers": list(numbers)} if entry.get("named") and numbers else {}
    source = data.sources[batches["data"]] if "data" in batches else {"type": ""}
    task = entry.get("task", {}).get(source["type"])
    if task == "speech" and "label_col" in source["parameters"]:  # a class for each sound
        task = None
    return {**found, "task": task} if task else found


def _goal(sub: Section) -> dict[str, Any]:
    priority = sub.take("priority", _NO_PRIORITY, of=int)
    found: dict[str, Any] = {} if priority == _NO_PRIORITY else {"priority": priority}
    goal = sub.inner("goal")
    kind, value = goal.take("type", of=str), goal.take("value", 0, of=float)
    goal.close("goal")
    if kind is None:
        if "value" in goal:
            sub.log.note(goal.place_of("value"), "no effect without a type")
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
    found = data.found(name, section.place_of("data_config"), section.log)
    return {} if found is None else {"data": found}


def _take(section: Section, known: Mapping[str, Parameter], taken: Taken) -> None:
    """Take all that is known of a section."""
    for name, parameter in known.items():
        value, place = section.take(name), section.place_of(name)
        if value is not None and parameter.has_no_counterpart:
            section.log.without_counterpart(parameter, value, place)
        elif value is not None:
            made = value_of(parameter, value, place, section.log)
            if made == {} and value in list(parameter.values):
                section.log.note(place, ANYWAY)
            taken.put(made, Origin(place, name, value, parameter))


def _checked(
    section: Section, measure: dict[str, Any], origins: Mapping[str, Origin], data: DataConfigs
) -> list[dict[str, Any]]:
    """The metric; a problem unless it takes these parameters."""
    measure = {key: value for key, value in measure.items() if value}
    spelled_out = data.spelled_out(measure.get("parameters", {}))
    try:
        Measure(measure["type"], spelled_out).make(section.place)
    except ColdpressError as error:
        section.log.problems.append(in_its_words(error, section.place, origins))
    return [measure]


def _rank(measures: list[dict[str, Any]], searches: bool, place: str, root: Section) -> None:
    """In a search some number must rank the results; as in Olive, that is the only one there is, else the first."""
    goals = [(one["type"], name, goal) for one in measures for name, goal in one.get("goals", {}).items()]
    ranking = [goal["priority"] for *_, goal in goals if "priority" in goal]
    if searches and ranking == [1] and "priority" in goals[0][2]:
        why = "the first sub type would rank the results without it, too"
        root.log.note(f"{place}.metrics", why, {"priority": 1})
    if searches and goals and not ranking:
        metric, name, goal = goals[0]
        goal["priority"] = 1
        root.log.note(place, f"no sub type has a priority: {name} of {metric} ranks the results")
    for one in measures:
        kept = {name: goal for name, goal in one.pop("goals", {}).items() if goal}
        one.update({"goals": kept} if kept else {})
