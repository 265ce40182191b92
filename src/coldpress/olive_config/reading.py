"""Reading a configuration key by key, so that no key is passed over: what nobody takes is looked up, or complained of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.olive_config.converters import converted
from coldpress.olive_config.tables import Key, Parameter, keys_of
from coldpress.schema import Misfit


@dataclass
class Log:
    """What there is to say about a configuration: ``notes`` on what differs here, ``problems`` that keep it from running."""

    notes: list[str] = field(default_factory=list)
    problems: list[Misfit] = field(default_factory=list)

    def note(self, place: str, text: str) -> None:
        if (line := f"{place}: {text}") not in self.notes:
            self.notes.append(line)

    def refuse(self, place: str, problem: str, hint: str | None = None) -> None:
        self.problems.append(Misfit(place, problem, hint))

    def without_counterpart(self, known: Key | Parameter, value: Any, place: str) -> None:
        """Say why a key has no effect, or refuse its value; nothing for values that ask for nothing."""
        if value in known.unless:
            return
        if known.no_effect:
            self.note(place, f"no effect here: {known.no_effect}")
        else:
            self.refuse(place, f"{value!r} cannot be expressed", known.refused)

    def attempt(self, place: str, work: Callable[[], Any]) -> Any:
        """What ``work`` gives; None, and a problem, when it raises ColdpressError."""
        try:
            return work()
        except Misfit as error:
            self.problems.append(error)
        except ColdpressError as error:
            self.refuse(place, error.message, error.hint)
        return None


class Section:
    """One mapping of a configuration. Keys under ``nested`` names, which Olive takes at both levels, are its own.

    ``place`` is the path to it. Every key is taken once; `close` deals with the others.
    """

    def __init__(self, data: Any, place: str, log: Log, nested: tuple[str, ...] = ()):
        self.place, self.log = place, log
        self._places: dict[str, str] = {}
        self._data: dict[str, Any] = {}
        self._taken: list[str] = []
        if data is not None and not isinstance(data, Mapping):
            log.refuse(place, f"a mapping is needed here, not {data!r}")
            data = None
        self._add(data or {}, place, nested)

    def _add(self, data: Mapping[str, Any], place: str, nested: tuple[str, ...]) -> None:
        for key, value in data.items():
            where = f"{place}.{key}".strip(".")
            if key in nested and isinstance(value, Mapping):
                self._add(value, where, ())
            elif key in self._data and self._data[key] != value:
                self.log.refuse(where, f"'{key}' stands at two levels, with different values", "leave one out")
            else:
                self._data[str(key)], self._places[str(key)] = value, where

    def take(self, name: str, default: Any = None, of: type[Any] | None = None) -> Any:
        """The value of a key; the default when it is missing or null, which are the same, or not of the type ``of``."""
        self._taken.append(name)
        value = self._data.get(name)
        if value is None:
            return default
        if of is not None and not _is(value, of):
            self.log.refuse(self.place_of(name), f"{value!r} is not {_NAMES[of]}")
            return default
        return value

    def inner(self, name: str, nested: tuple[str, ...] = ()) -> Section:
        """The mapping under a key; an empty one when it is missing."""
        return Section(self.take(name), self.place_of(name), self.log, nested)

    def items(self, name: str) -> list[tuple[str, Any]]:
        """The items of a list under a key, or of one that is no list, each with its place."""
        value = self.take(name, [])
        if not isinstance(value, list):
            return [(self.place_of(name), value)]
        return [(f"{self.place_of(name)}[{index}]", item) for index, item in enumerate(value)]

    def place_of(self, name: str) -> str:
        return self._places.get(name, f"{self.place}.{name}".strip("."))

    def __contains__(self, name: str) -> bool:
        return self._data.get(name) is not None

    def rest(self) -> Iterator[tuple[str, Any]]:
        """The keys that nobody took, without those that are null; they count as taken now."""
        for key in [key for key, value in self._data.items() if key not in self._taken and value is not None]:
            yield key, self.take(key)

    def close(self, table: str, expected: tuple[str, ...] = ()) -> None:
        """Note the keys left that have no effect, and refuse the others; ``table`` says which are which.

        ``expected``: further keys that one might have meant.
        """
        known = keys_of(table)
        meant = [*self._taken, *known, *expected]
        for key, value in self.rest():
            place = self.place_of(key)
            if key in known:
                self.log.without_counterpart(known[key], value, place)
            else:
                self.log.refuse(place, f"there is no '{key}' here", did_you_mean(key, meant))


#: types that values may have, and what they are called
_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def _is(value: Any, wanted: type[Any]) -> bool:
    """Whether a value has a type; true and false are no numbers, whole numbers are numbers."""
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


def value_of(known: Parameter, value: Any, place: str, log: Log) -> dict[str, Any]:
    """A value of Olive's as parameters of ours; none, and a problem, for a value that cannot be expressed."""
    key = str(value) if isinstance(value, list | dict) else value
    if key in known.refuse:
        log.refuse(place, f"{value!r} cannot be expressed", known.refuse[key])
        return {}
    if known.converter:
        made = log.attempt(place, lambda: converted(known.converter, value))
        if made is None:
            return {}
    else:
        made = known.values.get(key, value)
    sets_several = isinstance(made, Mapping) and (known.values or not known.to)
    return dict(made) if sets_several else {known.to: made}
