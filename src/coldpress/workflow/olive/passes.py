"""``passes``: Olive's passes as steps, by the table passes.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coldpress.errors import did_you_mean
from coldpress.workflow import Step
from coldpress.workflow.olive import tables
from coldpress.workflow.olive.data import DataConfigs
from coldpress.workflow.olive.parameters import DEFAULT, SEARCHABLE, Parameters
from coldpress.workflow.olive.reading import Log, Section


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
    #: the pass that takes what one before it has said, and where that stands, key by key
    _joining: dict[str, tuple[dict[str, Any], list[str]]] = field(default_factory=dict)

    def read(self, root: Section) -> list[Step]:
        """The steps, in the order of the passes or of the flow that names them."""
        defined = root.inner("passes")
        configs = dict(defined.rest())
        flows = _flows(root)
        for name in dict.fromkeys(name for flow in flows for name in flow if name not in configs):
            self.log.refuse(root.place_of("pass_flows"), f"there is no pass '{name}'", did_you_mean(str(name), configs))
            self.log.left_out("passes", "not read, as the flow is not known", configs)
            return []
        for name in configs if flows else ():
            if not any(name in flow for flow in flows):
                self.log.left_out(defined.place_of(name), "in no pass flow, left out", configs[name])
        if flows and flows == [list(configs)]:
            root.anyway("pass_flows")
        slots = self._slots(flows or [list(configs)], root.place_of("pass_flows"))
        for name, config in configs.items():
            if not any(name in slot for slot in slots) and any(name in flow for flow in flows):
                self.log.left_out(defined.place_of(name), "in a flow that is not done", config)
        steps = [step for slot in slots for step in self._slot(slot, configs, defined)]
        for kind, (_, places) in self._joining.items():
            for place in places:
                self.log.note(place, f"no effect: it is for a pass behind it, and none becomes {kind}")
        return steps

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

    def _slot(self, names: list[str | None], configs: Mapping[str, Any], defined: Section) -> list[Step]:
        """The steps of one place: those of a pass, or one with alternatives of which a search picks."""
        found: list[list[Step]] = []
        for name in names:
            if name is not None:
                found += self._alternatives(configs[name], defined.place_of(name))
        all_steps = [step for steps in found for step in steps]
        self._done += [step.type for step in all_steps]
        if len(found) < 2 and None not in names:
            return all_steps
        if any(len(steps) > 1 for steps in found):
            self.log.refuse(defined.place, "an alternative becomes two steps", "write one file for each alternative")
        return [Step(any_of=tuple(all_steps), optional=None in names or [] in found)] if all_steps else []

    def _alternatives(self, config: Any, place: str) -> list[list[Step]]:
        """The passes that one entry names, each as its steps; without a search the first of them."""
        if not isinstance(config, list):
            return self._pass(config, place)
        found: list[list[Step]] = []
        for index, one in enumerate(config):
            if index and not self.searches:
                self.log.note(place, "without a search the first alternative is done")
                self.log.note(f"{place}[{index}]", "left out", one)
            else:
                found += self._pass(one, f"{place}[{index}]")
        return found

    def _pass(self, config: Any, place: str) -> list[list[Step]]:
        """A pass as steps: an empty list where nothing has to be done, two lists where a search picks the kind; none if
        refused."""
        section = Section(config, place, self.log, ("config",))
        wanted = section.take("type", "", of=str)
        entry = tables.pass_named(wanted)
        if entry is None:
            hint = did_you_mean(wanted, tables.passes())
            self.log.refuse(section.place_of("type"), f"there is no pass '{wanted}'", hint)
            section.leave("not read, as nobody knows the pass")
            return []
        if entry.instead and not self._is_done(entry, section):
            self.log.refuse(place, f"there is nothing like {wanted} here", entry.instead)
            section.leave("not read, as nothing here takes it")
            return []
        if (name := self.data.of_function(section)) is not None:
            section.put("data_config", name)
        self._elsewhere(section)
        is_fixed = section.take("disable_search", False, of=bool)
        opens = self.searches and self.opens and not is_fixed
        if "disable_search" in section and (opens == (self.searches and self.opens) or self._is_done(entry, section)):
            section.anyway("disable_search")
        return [self._steps(one, wanted, section, opens) for one in self._kinds(entry, section, opens)]

    def _is_done(self, entry: tables.Pass, section: Section) -> str:
        """Why a pass before has done this one's work already; empty if none has."""
        if entry.redundant_if and section.beside.get(entry.redundant_if) is not True:
            return ""
        return next((why for done, why in entry.redundant_after.items() if done in self._done), "")

    def _steps(self, entry: tables.Pass, wanted: str, section: Section, opens: bool) -> list[Step]:
        """What one pass becomes; a pass without work is read like others, as what it says may be wrong."""
        parameters = Parameters(section, entry, self.searches, opens, self.data, self.workflow)
        why = self._is_done(entry, section)
        idle = f"{wanted} has no effect here: {why}" if why else f"{wanted} is left out: {entry.left_out}"
        if why or entry.left_out:
            return parameters.idle(idle)
        if entry.joins:
            places = [section.place_of(key) for key in entry.parameters if key in section]
            self._joining[entry.joins] = (parameters.joined(), places)
            return []
        return [self._joined(step) for step in parameters.steps()]

    def _joined(self, step: Step) -> Step:
        """A step with what a pass before has said for it."""
        said, _ = self._joining.pop(step.type, ({}, []))
        return replace(step, parameters={**said, **step.parameters}) if said else step

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
                hint = did_you_mean(str(name), names)
                self.log.refuse(section.place_of(entry.which), f"{name!r} is not a choice", hint)
                section.leave("not read")
        kinds = {name: tables.passes()[target] for name, target in entry.passes.items()}
        for key in dict.fromkeys(key for kind in kinds.values() for key in kind.parameters if key in section):
            value = section.take(key)
            if not any(key in kinds[name].parameters for name in wanted if name in names):
                text = f"no effect here with {entry.which} {' and '.join(map(str, wanted))}"
                self.log.note(section.place_of(key), text, value)
        return [kinds[name].without(entry.which) for name in wanted if name in names]

    def _elsewhere(self, section: Section) -> None:
        """A pass has the engine's host and evaluator."""
        if section.take("evaluator", self.evaluator) != self.evaluator:
            problem = "metrics are measured of the result, not after a pass"
            self.log.refuse(section.place_of("evaluator"), problem, "name the engine's evaluator, or leave it out")
        if section.take("host", self.host) != self.host:
            hint = "name the engine's host, or leave it out"
            self.log.refuse(section.place_of("host"), "all passes run on one system", hint)


def _flows(root: Section) -> list[list[str]]:
    """Lists of names of passes, from such lists or from one."""
    found = [item for _, item in root.items("pass_flows")]
    flows = found if any(isinstance(item, list) for item in found) else [found] if found else []
    for flow in flows:
        if not isinstance(flow, list) or not flow or not all(isinstance(name, str) for name in flow):
            root.log.refuse(root.place_of("pass_flows"), f"{flow!r} is no list of names of passes")
            return []
    return flows


def _common(one: list[str], other: list[str]) -> int:
    """How many items two lists have in common from their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
