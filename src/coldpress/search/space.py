"""What a search may decide: open parameters and alternative passes as named dimensions, and a point of them as passes.

A parameter is left open by a mapping in place of its value::

    block_size: {choice: [32, 64, 128]}               one of these
    damping: {range: [0.001, 0.1], log: true}         anything between, both ends included
    samples: {range: [32, 128], step: 32}             whole numbers, as the parameter is one
    bins: {choice: [128, 2048], when: {method: entropy}, otherwise: 128}

``when`` names other parameters of the same pass and the value, or list of values, with which this one is open; with
others it has the value ``otherwise``, or the pass's default. A step with ``any_of`` is one of several, and an
``optional`` one may be left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts import schema
from coldpress.workflow import Step, is_open

#: the values of the dimensions that are open at a place, by name
Point = dict[str, Any]
LEFT_OUT = "none"
_FORMS = {"choice": {"when", "otherwise"}, "range": {"when", "otherwise", "log", "step"}}


@dataclass(frozen=True)
class Dimension:
    """One decision: one of ``choices``, or a number from ``low`` to ``high``, both included.

    ``slot`` is the place of its pass among the passes. ``when``: names of dimensions before it and the values of which
    each must have one for this dimension to be open.
    """

    name: str
    slot: int
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        return bool(self.choices) or self.step is not None or self.is_point

    @property
    def is_point(self) -> bool:
        """Whether it is a range of one number."""
        return not self.choices and self.low == self.high

    def values(self) -> tuple[Any, ...]:
        """All values in order; ColdpressError for a range of floats without a step."""
        if self.choices:
            return self.choices
        if not self.is_finite:
            raise ColdpressError(
                f"{self.name}: there is no end of numbers between {self.low:g} and {self.high:g}",
                hint="give the range a step, or use the sampler tpe with a number of trials",
            )
        steps = round((self.high - self.low) / self.step) if self.step else 0
        numbers = (self.low + index * (self.step or 0) for index in range(steps + 1))
        return tuple(int(number) if self.whole else number for number in numbers)

    def is_open_at(self, point: Point) -> bool:
        return all(name in point and point[name] in allowed for name, allowed in self.when.items())


@dataclass(frozen=True)
class _Option:
    """One pass that may stand in a slot: ``opened`` maps its open parameters to names of dimensions."""

    label: str
    step: Step | None
    opened: Mapping[str, str] = field(default_factory=dict)
    otherwise: Mapping[str, Any] = field(default_factory=dict)

    def at(self, point: Point) -> Step:
        assert self.step is not None
        fixed = {name: value for name, value in self.step.parameters.items() if name not in self.opened}
        chosen = {name: point[dimension] for name, dimension in self.opened.items() if dimension in point}
        return Step(self.step.type, {**self.otherwise, **fixed, **chosen})


@dataclass(frozen=True)
class _Slot:
    selector: str | None
    options: tuple[_Option, ...]

    @property
    def fixed(self) -> Step | None:
        """The pass that is here at every point."""
        option = self.options[0]
        return None if self.selector or option.opened or option.step is None else option.at({})

    def at(self, point: Point) -> _Option:
        if self.selector is None:
            return self.options[0]
        return next(option for option in self.options if option.label == point[self.selector])


@dataclass(frozen=True)
class Space:
    """All that a search may decide.

    ``dimensions`` are in the order of passes; conditions come before what they open.
    """

    slots: tuple[_Slot, ...]
    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, steps: Iterable[Step]) -> Space:
        """The space of passes.

        Raises ColdpressError for a form that cannot be read and for a value that no pass takes.
        """
        labels: dict[str, int] = {}
        slots, dimensions = [], []
        for index, step in enumerate(steps):
            slot, opened = _read_slot(step, index, labels)
            slots.append(slot)
            dimensions += opened
        return cls(tuple(slots), tuple(dimensions))

    @property
    def is_finite(self) -> bool:
        return all(dimension.is_finite for dimension in self.dimensions)

    def point(self, choose: Callable[[Dimension], Any]) -> Point:
        """The point that ``choose`` makes, asked for each dimension that is open in turn."""
        made: Point = {}
        for dimension in self.dimensions:
            if dimension.is_open_at(made):
                made[dimension.name] = choose(dimension)
        return made

    def points(self, values_of: Callable[[Dimension], Iterable[Any]] = Dimension.values) -> Iterator[Point]:
        """Every point with the values that ``values_of`` gives, the last dimension changing fastest."""

        def extend(made: Point, index: int) -> Iterator[Point]:
            if index == len(self.dimensions):
                yield made
                return
            dimension = self.dimensions[index]
            if not dimension.is_open_at(made):
                yield from extend(made, index + 1)
                return
            for value in values_of(dimension):
                yield from extend({**made, dimension.name: value}, index + 1)

        return extend({}, 0)

    def each_value(self) -> Iterator[Point]:
        """Points in which every value of every dimension occurs once at least; of a range without end its ends."""
        known = {dimension.name: dimension for dimension in self.dimensions}

        def needed(dimension: Dimension) -> Point:
            conditions = {name: allowed[0] for name, allowed in dimension.when.items()}
            return {**{k: v for name in conditions for k, v in needed(known[name]).items()}, **conditions}

        for dimension in self.dimensions:
            for value in some_values(dimension):
                base = {**needed(dimension), dimension.name: value}
                yield self.point(lambda one, base=base: held_value(one, base))  # type: ignore[misc]

    def size(self, limit: int = 100_000) -> int | None:
        """How many points there are; None when they are more than ``limit``, or without end."""
        if not self.is_finite:
            return None
        counted = sum(1 for _ in islice(self.points(), limit + 1))
        return counted if counted <= limit else None

    def steps_at(self, point: Point) -> tuple[Step, ...]:
        """The passes of a point, with nothing left open."""
        chosen = (slot.at(point) for slot in self.slots)
        return tuple(option.at(point) for option in chosen if option.step is not None)

    def is_open_step(self, step: Step) -> bool:
        """Whether a pass of a point may be another one, or none, or another way at other points."""
        return all(slot.fixed != step for slot in self.slots)

    def alternatives(self) -> list[tuple[Space | None, ...]]:
        """For each slot its passes, each as a space of its own parameters; None where the pass may be left out."""
        return [tuple(self._alone(option) for option in slot.options) for slot in self.slots]

    def _alone(self, option: _Option) -> Space | None:
        if option.step is None:
            return None
        own = set(option.opened.values())
        dimensions = (
            replace(dimension, when={name: allowed for name, allowed in dimension.when.items() if name in own})
            for dimension in self.dimensions
            if dimension.name in own
        )
        return Space((_Slot(None, (option,)),), tuple(dimensions))


def key_of(point: Point) -> str:
    """A text that is the same for equal points."""
    return json.dumps(point, sort_keys=True, default=str)


def _read_slot(step: Step, slot: int, labels: dict[str, int]) -> tuple[_Slot, list[Dimension]]:
    found = list(_alternatives(step))
    named = [_named(one, labels) for one in found]
    selector = f"step {slot + 1}" if len(found) > 1 else None
    options, dimensions = [], []
    if selector:
        dimensions.append(Dimension(selector, slot, tuple(named)))
    for one, label in zip(found, named, strict=True):
        if one is None:
            options.append(_Option(label, None))
            continue
        option, opened = _Reader(one, label, slot, {selector: (label,)} if selector else {}).read()
        options.append(option)
        dimensions += opened
    return _Slot(selector, tuple(options)), dimensions


def _alternatives(step: Step) -> Iterator[Step | None]:
    """The passes that a step may be, each once; None for leaving it out."""
    if step.any_of and (step.type or step.parameters):
        raise ColdpressError(
            f"a step has either a type ('{step.type}') or any_of, not both", hint="put the pass among the alternatives"
        )
    if not step.any_of:
        if not step.type:
            raise ColdpressError("a step names no pass", hint="give it a type; `coldpress list` shows them")
        yield replace(step, optional=False)
    for one in step.any_of:
        yield from (found for found in _alternatives(one) if found is not None)
    if step.optional or any(one.optional for one in step.any_of):
        yield None


def _named(step: Step | None, labels: dict[str, int]) -> str:
    """A name for an alternative that no other in the space has."""
    if step is None:
        return LEFT_OUT
    labels[step.type] = labels.get(step.type, 0) + 1
    return step.type if labels[step.type] == 1 else f"{step.type}-{labels[step.type]}"


@dataclass
class _Reader:
    """Reads the open parameters of one pass; ``when`` is what must hold for the pass to be there at all."""

    step: Step
    label: str
    slot: int
    when: Mapping[str, tuple[Any, ...]]

    def read(self) -> tuple[_Option, list[Dimension]]:
        self._part = parts.find("passes", self.step.type)
        fixed = {name: value for name, value in self.step.parameters.items() if not is_open(value)}
        schema.build(self._part, fixed, self.step.type)
        forms = {name: value for name, value in self.step.parameters.items() if is_open(value)}
        self._known = {one.name: one.default for one in dataclasses.fields(self._part)} | fixed
        otherwise = {name: form["otherwise"] for name, form in forms.items() if "otherwise" in form}
        for name, form in forms.items():
            self._check_when(name, form.get("when", {}))
        dimensions: dict[str, Dimension] = {}
        for name in self._in_order(forms):
            dimension = self._dimension(name, forms[name])
            conditions = self._conditions(forms[name], dimensions)
            if conditions is not None:
                dimensions[name] = replace(dimension, when={**self.when, **conditions})
        opened = {name: dimensions[name].name if name in dimensions else "" for name in forms}
        return _Option(self.label, self.step, opened, otherwise), list(dimensions.values())

    def _check_when(self, name: str, when: Any) -> None:
        if not isinstance(when, Mapping):
            raise self._unreadable(name, f"'when' is {when!r}", "write when: {parameter: value}")
        for other in when:
            if other not in self._known:
                hint = did_you_mean(other, self._known)
                raise self._unreadable(name, f"'when' names '{other}', which is no parameter here", hint)

    def _in_order(self, forms: Mapping[str, Any]) -> list[str]:
        """The open parameters, those that are conditions of others first."""
        ordered: list[str] = []
        left = dict(forms)
        while left:
            free = [name for name, form in left.items() if not set(form.get("when", {})) & set(left)]
            if not free:
                raise ColdpressError(f"{self.step.type}: the conditions of {' and '.join(left)} go round in a circle")
            ordered += free
            left = {name: form for name, form in left.items() if name not in free}
        return ordered

    def _conditions(
        self, form: Mapping[str, Any], before: Mapping[str, Dimension]
    ) -> dict[str, tuple[Any, ...]] | None:
        """The dimensions that decide whether a parameter is open, with the values needed; None: it never is."""
        found = {}
        for other, wanted in form.get("when", {}).items():
            allowed = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)
            if other in before:
                found[before[other].name] = allowed
            elif is_open(self.step.parameters.get(other)) or schema.plain(self._known[other]) not in allowed:
                return None
        return found

    def _dimension(self, name: str, form: Mapping[str, Any]) -> Dimension:
        kind = "choice" if "choice" in form else "range"
        if name not in self._known:
            schema.build(self._part, {name: None}, self.step.type)  # says which parameter was meant
        for key in set(form) - {kind} - _FORMS[kind]:
            raise self._unreadable(name, f"there is no '{key}' in a {kind}", did_you_mean(key, _FORMS[kind]))
        values = form[kind]
        if not isinstance(values, list | tuple) or not values:
            raise self._unreadable(name, f"the {kind} is {values!r}", "there must be something to pick from, as a list")
        checked = values if "otherwise" not in form else [*values, form["otherwise"]]
        for value in checked:
            schema.build(self._part, {**self._others(name), name: value}, self.step.type)
        if kind == "range":
            return self._range(name, values, form)
        if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
            raise self._unreadable(name, f"{values!r} has a value twice", "leave one out")
        return Dimension(f"{self.label}.{name}", self.slot, tuple(values))

    def _others(self, name: str) -> dict[str, Any]:
        """The closed parameters beside one."""
        return {other: value for other, value in self.step.parameters.items() if other != name and not is_open(value)}

    def _range(self, name: str, ends: Sequence[Any], form: Mapping[str, Any]) -> Dimension:
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
        if len(ends) != 2 or not numbers or not ends[0] <= ends[1] or not all(map(math.isfinite, ends)):
            raise self._unreadable(name, f"the range is {ends!r}", "write range: [lowest, highest]")
        low, high, log, step = *ends, bool(form.get("log")), form.get("step")
        whole = float not in _types(typing.get_type_hints(self._part)[name])
        if log and (step is not None or low <= 0):
            raise self._unreadable(name, "a range with 'log' starts above zero and has no step", "leave out log")
        if step is not None and (not isinstance(step, int | float) or step <= 0 or (whole and step != int(step))):
            raise self._unreadable(name, f"the step is {step!r}", "it is a number above zero, whole for whole numbers")
        step = step or (1 if whole else None)
        if step:
            high = low + step * math.floor((high - low) / step + 1e-9)
        return Dimension(f"{self.label}.{name}", self.slot, (), low, high, step, log, whole)

    def _unreadable(self, name: str, problem: str, hint: str) -> ColdpressError:
        return ColdpressError(f"{self.step.type}.{name}: {problem}", hint=hint)


def _types(hint: Any) -> set[Any]:
    """The types that a field takes."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return {found for option in typing.get_args(hint) for found in _types(option)}
    return {hint}


def some_values(dimension: Dimension) -> tuple[Any, ...]:
    """All values of a finite dimension, else its ends."""
    return dimension.values() if dimension.is_finite else (dimension.low, dimension.high)


def held_value(dimension: Dimension, base: Point) -> Any:
    """The value that a dimension keeps while others are searched: that of ``base``, or its first."""
    if dimension.name in base:
        return base[dimension.name]
    return dimension.choices[0] if dimension.choices else int(dimension.low) if dimension.whole else dimension.low
