"""``passes``: Olive's passes and parameters as steps, by the table passes.yaml."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coldpress import parts
from coldpress.errors import did_you_mean
from coldpress.olive_config import tables
from coldpress.olive_config.data import DataConfigs
from coldpress.olive_config.reading import Log, Section, value_of
from coldpress.workflow import Step
from coldpress.workflow.file import check_step

SEARCHABLE, DEFAULT = "SEARCHABLE_VALUES", "DEFAULT_VALUE"
#: parameters that are the name of a data config; the first is spelled out, as calibration data has no name here
CALIBRATION, NAMES_OF_DATA = "calibration", ("data", "train_data", "eval_data")
_WORKFLOW = "workflow."


@dataclass
class Passes:
    """Reads passes. ``searches``: whether there is a search; ``opens``: whether it may try what is left unsaid.

    ``data``: what the data configs became. ``workflow`` receives what a pass says of the whole.
    """

    log: Log
    searches: bool = False
    opens: bool = True
    data: DataConfigs = field(default_factory=DataConfigs)
    evaluator: Any = None
    host: Any = None
    workflow: dict[str, Any] = field(default_factory=dict)
    _done: list[str] = field(default_factory=list)

    def read(self, root: Section) -> list[Step]:
        """The steps, in the order of the passes or of the flow that names them."""
        defined = root.inner("passes")
        configs = dict(defined.rest())
        flows = _flows(root)
        for name in dict.fromkeys(name for flow in flows for name in flow if name not in configs):
            self.log.refuse(root.place_of("pass_flows"), f"there is no pass '{name}'", did_you_mean(str(name), configs))
            return []
        for name in configs if flows else ():
            if not any(name in flow for flow in flows):
                self.log.note(defined.place_of(name), "in no pass flow, left out")
        slots = self._slots(flows or [list(configs)], root.place_of("pass_flows"))
        return [step for slot in slots if (step := self._slot(slot, configs, defined)) is not None]

    def _slots(self, flows: list[list[str]], place: str) -> list[list[str | None]]:
        """The passes that may stand in each place; None where a flow has none there.

        Flows that differ in one place are one flow with alternatives there.
        """
        first = flows[0]
        start = min(_common(first, flow) for flow in flows)
        end = min([len(first) - start, *(_common(first[start:][::-1], flow[start:][::-1]) for flow in flows)])
        middles = [flow[start : len(flow) - end] for flow in flows]
        if any(len(middle) > 1 for middle in middles):
            self.log.refuse(place, "these flows differ in more than one place", "write one file for each flow")
        if len(flows) > 1 and not self.searches:
            self.log.note(place, "without a search the first flow is done")
        slots: list[list[str | None]] = [[name] for name in first]
        if len(flows) > 1 and self.searches:
            slots[start : len(first) - end] = [list(dict.fromkeys(one[0] if one else None for one in middles))]
        return slots

    def _slot(self, names: list[str | None], configs: Mapping[str, Any], defined: Section) -> Step | None:
        """The step of one place: a pass, or alternatives of which a search picks one."""
        found: list[Step] = []
        for name in names:
            if name is None:
                continue
            place = defined.place_of(name)
            items = configs[name] if isinstance(configs[name], list) else [configs[name]]
            if len(items) > 1 and not self.searches:
                self.log.note(place, "without a search the first alternative is done")
                items = items[:1]
            places = [place] if not isinstance(configs[name], list) else [f"{place}[{i}]" for i in range(len(items))]
            found += [step for one, where in zip(items, places, strict=True) for step in self._pass(one, where)]
        self._done += [step.type for step in found]
        if len(found) > 1 or (found and None in names):
            return Step(any_of=tuple(found), optional=None in names)
        return found[0] if found else None

    def _pass(self, config: Any, place: str) -> list[Step]:
        """A pass as steps: one, none where nothing has to be done, two where a search picks the kind."""
        section = Section(config, place, self.log, ("config",))
        wanted = section.take("type", "", of=str)
        entry = _entry(wanted)
        if entry is None:
            hint = did_you_mean(wanted, tables.passes())
            self.log.refuse(section.place_of("type"), f"there is no pass '{wanted}'", hint)
            return []
        self._elsewhere(section)
        disabled = section.take("disable_search", False, of=bool)
        opens = self.searches and self.opens and not disabled
        for done, why in entry.redundant_after.items():
            if done in self._done:
                self.log.note(place, f"{wanted} has no effect here: {why}")
                return []
        if entry.left_out:
            self.log.note(place, f"{wanted} is left out: {entry.left_out}")
            return []
        if entry.instead:
            self.log.refuse(place, f"there is nothing like {wanted} here", entry.instead)
            return []
        return [step for one in self._kinds(entry, section, opens) for step in self._step(one, wanted, section, opens)]

    def _kinds(self, entry: tables.Pass, section: Section, opens: bool) -> list[tables.Pass]:
        """The pass itself, or those that the value of a key stands for."""
        if not entry.which:
            return [entry]
        names = list(entry.passes)
        value = section.take(entry.which, SEARCHABLE if opens else names[0])
        wanted = names if value == SEARCHABLE else [names[0]] if value == DEFAULT else value
        wanted = wanted if isinstance(wanted, list) else [wanted]
        for name in wanted:
            if name not in names:
                self.log.refuse(
                    section.place_of(entry.which), f"{name!r} is not a choice", did_you_mean(str(name), names)
                )
        kinds = {name: tables.passes()[target] for name, target in entry.passes.items()}
        for key in {key for kind in kinds.values() for key in kind.parameters if key in section}:
            section.take(key)
            if not any(key in kinds[name].parameters for name in wanted if name in names):
                self.log.note(section.place_of(key), f"no effect here with {entry.which} {' and '.join(wanted)}")
        return [kinds[name].without(entry.which) for name in wanted if name in names]

    def _elsewhere(self, section: Section) -> None:
        """A pass has the engine's host and evaluator."""
        if section.take("evaluator", self.evaluator) != self.evaluator:
            problem = "metrics are measured of the result, not after a pass"
            self.log.refuse(section.place_of("evaluator"), problem, "name the engine's evaluator, or leave it out")
        if section.take("host", self.host) != self.host:
            hint = "name the engine's host, or leave it out"
            self.log.refuse(section.place_of("host"), "all passes run on one system", hint)

    def _step(self, entry: tables.Pass, wanted: str, section: Section, opens: bool) -> list[Step]:
        if entry.target not in parts.names("passes"):
            problem = f"{wanted} becomes the pass '{entry.target}', which comes in a later version of coldpress"
            self.log.refuse(section.place, problem, "leave it out")
            return []
        parameters = {**entry.fixed}
        for name, known in entry.parameters.items():
            if name in section:
                parameters |= self._translated(entry, known, section.take(name), section.place_of(name))
            elif opens and known.search and known.to not in parameters:
                parameters |= self._opened(known, list(known.search), section.place)
        section.close("pass", tuple(entry.parameters))
        spelled_out = Step(entry.target, self.data.spelled_out(parameters, NAMES_OF_DATA))
        self.log.attempt(section.place, lambda: check_step(spelled_out, section.place, section.place))
        return [Step(entry.target, parameters)]

    def _translated(self, entry: tables.Pass, known: tables.Parameter, value: Any, place: str) -> dict[str, Any]:
        """One parameter of Olive's as parameters of ours."""
        if known.has_no_counterpart:
            self.log.without_counterpart(known, value, place)
            return {}
        if value == DEFAULT:
            return {}
        if value == SEARCHABLE:
            return self._opened(known, list(known.search), place)
        if isinstance(value, list) and not _takes_lists(entry.target, known.to):
            return self._opened(known, value, place)
        return self._closed(known, value, place)

    def _closed(self, known: tables.Parameter, value: Any, place: str) -> dict[str, Any]:
        if known.to in (CALIBRATION, *NAMES_OF_DATA) and not self._knows_data(value, place):
            return {}
        if known.to == CALIBRATION:
            data = self.data.calibration[value]
            for missing in data.missing:
                self.log.refuse(
                    place, f"a pass that calibrates does not take {missing} of '{value}'", "use a text of your own"
                )
            return dict(data.parameters)
        made = value_of(known, value, place, self.log)
        if known.to.startswith(_WORKFLOW):
            self.workflow |= {key.removeprefix(_WORKFLOW): one for key, one in made.items()}
            return {}
        return made

    def _knows_data(self, name: Any, place: str) -> bool:
        known = self.data.sources
        if isinstance(name, str) and name in known:
            return True
        hint = did_you_mean(str(name), known) if known else "name one in data_configs"
        self.log.refuse(place, f"there is no data config {name!r}", hint)
        return False

    def _opened(self, known: tables.Parameter, values: list[Any], place: str) -> dict[str, Any]:
        """A parameter that a search fills."""
        if not self.searches:
            hint = "name one value, or add a search_strategy"
            self.log.refuse(place, "several values are searched, but there is no search_strategy", hint)
            return {}
        made = [self._closed(known, value, place) for value in values]
        choices = [one[known.to] for one in made if list(one) == [known.to]]
        if len(choices) < len(values) or not values:
            self.log.refuse(place, "these values cannot be searched among", "name one of them")
            return {}
        return {known.to: choices[0] if len(choices) == 1 else {"choice": choices}}


def _flows(root: Section) -> list[list[str]]:
    """Lists of names of passes, from such lists or from one."""
    found = [item for _, item in root.items("pass_flows")]
    flows = found if any(isinstance(item, list) for item in found) else [found] if found else []
    for flow in flows:
        if not isinstance(flow, list) or not flow or not all(isinstance(name, str) for name in flow):
            root.log.refuse(root.place_of("pass_flows"), f"{flow!r} is no list of names of passes")
            return []
    return flows


def _entry(name: str) -> tables.Pass | None:
    known = {known.lower(): entry for known, entry in tables.passes().items()}
    return known.get(name.lower())


def _common(one: list[str], other: list[str]) -> int:
    """How many items two lists have in common from their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _takes_lists(pass_name: str, parameter: str) -> bool:
    """Whether a list is a value of the parameter, not several values to search among."""
    if parameter == CALIBRATION or parameter.startswith(_WORKFLOW):
        return False
    hint = typing.get_type_hints(parts.find("passes", pass_name)).get(parameter)
    options = [hint, *typing.get_args(hint)]
    return hint is Any or any((typing.get_origin(one) or one) in (list, tuple, dict) for one in options)
