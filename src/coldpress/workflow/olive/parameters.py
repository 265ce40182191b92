"""The parameters of one of Olive's passes as those of the step, or the two steps, that it becomes."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.workflow import Step
from coldpress.workflow.check import check_step
from coldpress.workflow.olive.data import DataConfigs
from coldpress.workflow.olive.reading import ANYWAY, Log, Origin, Section, Taken, in_its_words, value_of
from coldpress.workflow.olive.tables import Parameter, Pass, Then

SEARCHABLE, DEFAULT = "SEARCHABLE_VALUES", "DEFAULT_VALUE"
#: parameters that are the name of a data config
NAMES_OF_DATA = ("data", "train_data", "eval_data")
_WORKFLOW = "workflow."


@dataclass
class Parameters:
    """Reads what ``section`` says of the pass ``entry``.

    ``searches``: whether there is a search; ``opens``: whether it tries what this pass leaves unsaid. ``workflow``
    receives what the pass says of the whole.
    """

    section: Section
    entry: Pass
    searches: bool
    opens: bool
    data: DataConfigs
    workflow: dict[str, Any]
    _log: Log = field(default_factory=Log)
    _origins: dict[str, Origin] = field(default_factory=dict)

    def steps(self) -> list[Step]:
        """The step, and the one behind it that the table knows of, checked."""
        self._log = self.section.log
        if self.entry.opened:
            self.section.open(self.entry.opened)
        if not any(known.search and name not in self.section for name, known in self.entry.parameters.items()):
            self.section.anyway("disable_search")
        parameters = {**self.entry.fixed, **self._read(self.entry)}
        behind = self._behind(self.entry.then)
        self.section.close("pass", self._names())
        self._check(self.entry.target, parameters)
        return [Step(self.entry.target, parameters), *behind]

    def joined(self) -> dict[str, Any]:
        """Parameters for the next step of another pass; what that says itself counts more."""
        self._log = self.section.log
        parameters = self._read(replace(self.entry, target=self.entry.joins))
        self.section.close("pass", self._names())
        return parameters

    def idle(self, why: str) -> list[Step]:
        """Say why the pass itself has no work; its parameters are read all the same, and so is the step behind it."""
        section, real = self.section, self.section.log
        if self.entry.opened:
            section.open(self.entry.opened)
        given = {key: section.take(key) for key in self.entry.parameters if key in section}
        if self.entry.target:
            self._log = (
                Log()
            )  # what would have no counterpart, or would be searched, does not matter: only what is wrong
            parameters = self._read(self.entry)
            self._log = real
            self._check(self.entry.target, parameters)
        for key in self.entry.parameters:
            section.take(key)
        self._log = real
        real.note(section.place, why, {**section.levels, **given})
        behind = self._behind(self.entry.then)
        section.close("pass", self._names())
        return behind

    def _names(self) -> tuple[str, ...]:
        then = self.entry.then
        return (*self.entry.parameters, *((then.when, *then.parameters) if then else ()))

    def _read(self, entry: Pass) -> dict[str, Any]:
        taken = Taken(self._log)
        for name, known in entry.parameters.items():
            value, place = self.section.take(name), self.section.place_of(name)
            if value is not None:
                made = self._translated(entry.target, known, value, place)
                if made and made.items() <= entry.fixed.items():
                    self._log.note(place, ANYWAY)
                taken.put(made, Origin(place, name, value, known))
            elif self.opens and known.search and known.to not in taken.parameters:
                taken.parameters |= self._opened(known, list(known.search), self.section.place)
        self._origins |= taken.origins
        return taken.parameters

    def _behind(self, then: Then | None) -> list[Step]:
        """The step behind, if the parameter that asks for it is true; in a search it may be left open."""
        if then is None:
            return []
        asked = self.section.take(then.when, False)
        choices = asked if isinstance(asked, list) else [asked]
        if not choices or not all(isinstance(one, bool) for one in choices):
            self._log.refuse(self.section.place_of(then.when), f"{asked!r} is not true or false")
        if not any(one is True for one in choices):
            for name in then.parameters:
                if (value := self.section.take(name)) is not None:
                    self._log.note(self.section.place_of(name), f"no effect without {then.when}", value)
            return []
        parameters = {**then.fixed, **self._read(Pass(target=then.target, parameters=then.parameters))}
        self._check(then.target, parameters)
        step = Step(then.target, parameters)
        if len(choices) == 1:
            return [step]
        if not self.searches:
            self._log.refuse(self.section.place_of(then.when), *_NO_SEARCH)
        return [Step(any_of=(step,), optional=True)]

    def _check(self, target: str, parameters: Mapping[str, Any]) -> None:
        """A problem, in the configuration's words, unless the pass takes these parameters."""
        place = self.section.place
        spelled_out = Step(target, self.data.spelled_out(parameters, NAMES_OF_DATA))
        try:
            check_step(spelled_out, place, place)
        except ColdpressError as error:
            self.section.log.problems.append(in_its_words(error, place, self._origins))

    def _translated(self, target: str, known: Parameter, value: Any, place: str) -> dict[str, Any]:
        """One parameter of Olive's as parameters of ours."""
        if known.has_no_counterpart:
            self._log.without_counterpart(known, value, place)
            return {}
        if value == DEFAULT:
            if self.opens and known.search:
                return {}
            self._log.note(place, "coldpress's default is taken")
            return {}
        if value == SEARCHABLE:
            return self._opened(known, list(known.search), place)
        if isinstance(value, list) and not _takes_lists(target, known.to):
            return self._opened(known, value, place)
        return self._closed(known, value, place)

    def _closed(self, known: Parameter, value: Any, place: str) -> dict[str, Any]:
        if known.to in NAMES_OF_DATA:
            if (name := self.data.found(value, place, self._log)) is None:
                return {}
            value = name
        made = value_of(known, value, place, self._log, self.section.beside)
        if known.to.startswith(_WORKFLOW):
            self.workflow |= {key.removeprefix(_WORKFLOW): one for key, one in made.items()}
            return {}
        return made

    def _opened(self, known: Parameter, values: list[Any], place: str) -> dict[str, Any]:
        """A parameter that a search fills."""
        if not self.searches:
            self._log.refuse(place, *_NO_SEARCH)
            return {}
        made = [self._closed(known, value, place) for value in values]
        choices = [one[known.to] for one in made if list(one) == [known.to]]
        if len(choices) < len(values) or not values:
            self._log.refuse(place, "these values cannot be searched among", "name one of them")
            return {}
        return {known.to: choices[0] if len(choices) == 1 else {"choice": choices}}


_NO_SEARCH = (
    "several values are searched, but there is no search_strategy",
    "name one value, or add a search_strategy",
)


@cache
def _takes_lists(pass_name: str, parameter: str) -> bool:
    """Whether a list is a value of the parameter, not several values to search among."""
    if parameter.startswith(_WORKFLOW):
        return False
    hint = typing.get_type_hints(parts.find("passes", pass_name)).get(parameter)
    options = [hint, *typing.get_args(hint)]
    return hint is Any or any((typing.get_origin(one) or one) in (list, tuple, dict) for one in options)
