"""Reading a configuration key by key, so that no key is passed over: what nobody takes is looked up, or complained
of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts.schema import Misfit
from coldpress.workflow.olive.converters import converted
from coldpress.workflow.olive.tables import Key, Parameter, keys_of

ANYWAY = "says what holds anyway"


@dataclass
class Log:
    """What there is to say about a configuration: notes on what differs here, and problems that keep it from
    running."""

    problems: list[Misfit] = field(default_factory=list)
    _notes: dict[str, None] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    def note(self, place: str, text: str, value: Any = None) -> None:
        """Say something of a place; keys inside its ``value`` share its fate and are named."""
        inside = ", ".join(keys_in(value))
        self._notes[f"{place}: {text} (with {inside})" if inside else f"{place}: {text}"] = None

    def left_out(self, place: str, why: str, value: Any) -> None:
        """Say why all that stands at a place is left out, and what that is."""
        self.note(place, why)
        if keys_in(value):
            self.note(place, "left out", value)

    def unread(self, place: str, value: Any) -> None:
        """Name the keys inside a value that could not be read."""
        if keys_in(value):
            self.note(place, "not read", value)

    def refuse(self, place: str, problem: str, hint: str | None = None) -> None:
        self.problems.append(Misfit(place, problem, hint))

    def without_counterpart(self, known: Key | Parameter, value: Any, place: str) -> None:
        """Say why a key has no effect, or refuse its value; values in ``unless`` say what holds anyway."""
        if value in known.unless:
            self.note(place, ANYWAY, value)
        elif known.no_effect:
            self.note(place, f"no effect here: {known.no_effect}", value)
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


def keys_in(value: Any) -> list[str]:
    """The keys of mappings at any depth of a value, each once."""
    found: dict[str, None] = {}
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        found |= dict.fromkeys(keys_in(inner))
    own = map(str, value) if isinstance(value, Mapping) else ()
    return list(dict.fromkeys([*own, *found]))


def grouped(notes: Sequence[str]) -> list[str]:
    """Notes for people: places of which the same is said stand in one line."""
    places: dict[str, list[str]] = {}
    for note in notes:
        place, _, text = note.partition(": ")
        places.setdefault(text, []).append(place)
    return [f"{', '.join(found)}: {text}" for text, found in places.items()]


class Section:
    """One mapping of a configuration. Keys under ``nested`` names, which Olive takes at both levels, are its own.

    ``place`` is the path to it, ``raw`` what stands there, ``levels`` the nested names that there are. Every key is
    taken once; `close` deals with the others.
    """

    def __init__(self, data: Any, place: str, log: Log, nested: tuple[str, ...] = ()):
        self.place, self.log, self.raw = place, log, data
        self._places: dict[str, str] = {}
        self._data: dict[str, Any] = {}
        self._taken: dict[str, None] = {}
        self.levels: dict[str, None] = {}
        if data is not None and not isinstance(data, Mapping):
            log.refuse(place, f"a mapping is needed here, not {data!r}")
            data = None
        self._add(data or {}, place, nested)

    def _add(self, data: Mapping[str, Any], place: str, nested: tuple[str, ...]) -> None:
        for key, value in data.items():
            where = f"{place}.{key}".strip(".")
            if key in nested and (value is None or value == {}):
                self.log.note(where, ANYWAY)
            elif key in nested and isinstance(value, Mapping):
                self.levels[key] = None
                self._add(value, where, tuple(name for name in nested if name != key))
            elif key not in self._data:
                self._data[str(key)], self._places[str(key)] = value, where
            elif self._data[key] == value:
                self.log.note(where, f"stands at {self._places[key]}, too", value)
            else:
                self.log.refuse(where, f"'{key}' stands at two levels, with different values", "leave one out")

    def take_out(self, name: str, default: Any = None, of: type[Any] | None = None) -> Any:
        """As `take`, of a key that nobody else shall read."""
        value = self.take(name, default, of)
        self._data.pop(name, None)
        return value

    def put(self, name: str, value: Any) -> None:
        """Let a key stand here that other keys stand for."""
        self._data[name] = value

    def open(self, name: str) -> None:
        """Take the keys of the mapping under a key as this section's own."""
        value = self.take(name)
        if isinstance(value, Mapping) and name not in self.levels:
            self.levels[name] = None
            self._add(value, self.place_of(name), ())
        elif value is not None and name not in self.levels:
            self.log.refuse(self.place_of(name), f"a mapping is needed here, not {value!r}")

    def take(self, name: str, default: Any = None, of: type[Any] | None = None) -> Any:
        """The value of a key; the default when it is missing or null, which are the same, or not of the type ``of``."""
        is_new = name not in self._taken
        self._taken[name] = None
        value = self._data.get(name)
        if is_new and name in self._data and (value is None or (value == default and type(value) is type(default))):
            self.anyway(name)
        if value is None:
            return default
        if of is not None and not _is(value, of):
            self.log.refuse(self.place_of(name), f"{value!r} is not {_NAMES[of]}")
            return default
        return value

    def anyway(self, name: str) -> None:
        """Note of a key, if it is there, that it says what holds without it."""
        if name in self._data:
            self.log.note(self.place_of(name), ANYWAY, self._data[name])

    def inner(self, name: str, nested: tuple[str, ...] = ()) -> Section:
        """The mapping under a key; an empty one when it is missing."""
        value = self.take(name)
        if value == {}:
            self.anyway(name)
        return Section(value, self.place_of(name), self.log, nested)

    def items(self, name: str) -> list[tuple[str, Any]]:
        """The items of a list under a key, or of one that is no list, each with its place."""
        value = self.take(name, [])
        if not isinstance(value, list):
            return [(self.place_of(name), value)]
        return [(f"{self.place_of(name)}[{index}]", item) for index, item in enumerate(value)]

    def place_of(self, name: str) -> str:
        return self._places.get(name, f"{self.place}.{name}".strip("."))

    def move(self, name: str, place: str) -> None:
        """Let a key stand at another place than below this section's."""
        self._places[name] = place

    @property
    def beside(self) -> Mapping[str, Any]:
        """All keys with their values, taken or not."""
        return self._data

    def __contains__(self, name: str) -> bool:
        return self._data.get(name) is not None

    def rest(self) -> Iterator[tuple[str, Any]]:
        """The keys that nobody took; they count as taken now. Those that are null are noted, and not among them."""
        for key in [key for key in self._data if key not in self._taken]:
            if (value := self.take(key)) is not None:
                yield key, value

    def untaken(self) -> Iterator[tuple[str, Any]]:
        """The keys that nobody took, those that are null among them; they count as taken now."""
        for key in [key for key in self._data if key not in self._taken]:
            self._taken[key] = None
            yield key, self._data[key]

    def leave(self, why: str) -> None:
        """Note of all keys that nobody took that they are not read, and why."""
        if left := dict(self.untaken()):
            self.log.note(self.place, why, {**self.levels, **left})

    def close(self, table: str, expected: tuple[str, ...] = ()) -> None:
        """Note the keys left that have no effect, and refuse the others; ``table`` says which are which.

        ``expected``: further keys that one might have meant.
        """
        known = keys_of(table)
        meant = dict.fromkeys([*self._taken, *known, *expected])
        for key in [key for key in self._data if key not in self._taken]:
            place, value = self.place_of(key), self._data[key]
            if key not in known:
                self.log.refuse(place, f"there is no '{key}' here", did_you_mean(key, meant))
                self.log.unread(place, value)
            elif self.take(key) is not None:
                self.log.without_counterpart(known[key], value, place)


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


@dataclass(frozen=True)
class Origin:
    """Where a parameter of ours comes from: its place and name in the configuration, and what stands there."""

    place: str
    name: str
    value: Any
    known: Parameter


@dataclass
class Taken:
    """Parameters of ours and where each comes from, as they are read one after the other."""

    log: Log
    parameters: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)

    def put(self, made: Mapping[str, Any], origin: Origin) -> None:
        """Add what a key of the configuration says.

        Lists add up; else, of two keys that say the same, the later counts.
        """
        for ours, value in made.items():
            known, before = self.parameters.get(ours), self.origins.get(ours)
            both = _together(known, value)
            self.parameters[ours], self.origins[ours] = both or value, origin
            if before is not None and not both:
                self.log.note(before.place, f"no effect: {origin.place} says it, too, and counts")
            if before is not None and known == value:
                self.log.note(origin.place, f"no effect: {before.place} says it, too")


def _together(known: Any, value: Any) -> list[Any] | dict[str, Any] | None:
    """Two values of a parameter in one, where they are lists or mappings, and differ."""
    if known == value:
        return None
    if isinstance(known, list) and isinstance(value, list):
        return [*known, *value]
    return {**known, **value} if isinstance(known, Mapping) and isinstance(value, Mapping) else None


def in_its_words(error: ColdpressError, where: str, origins: Mapping[str, Origin]) -> Misfit:
    """An error about parameters of ours, which ``where`` is the path to, as one about what the configuration says."""
    place, problem = (error.place, error.problem) if isinstance(error, Misfit) else (where, error.message)
    first, rest = _split(place.removeprefix(where).lstrip("."))
    words = {ours: origin.name for ours, origin in origins.items()}
    if first not in origins:
        return Misfit(place, _with_words(problem, words), _with_words(error.hint or "", words) or None)
    origin = origins[first]
    if origin.known.values:
        return Misfit(
            origin.place, f"{origin.value!r} is not a choice", did_you_mean(str(origin.value), _choices(origin))
        )
    seen = "" if origin.known.converter else rest
    return Misfit(origin.place + seen, _with_words(problem, words), _with_words(error.hint or "", words) or None)


def _split(path: str) -> tuple[str, str]:
    """The first name of a path, and what follows it."""
    name = re.match(r"[^.\[]*", path)
    first = name.group() if name else ""
    return first, path[len(first) :]


def _with_words(text: str, words: Mapping[str, str]) -> str:
    """A text with other names for parameters in it; those that are plain words stay, as they may be meant as such."""
    return re.sub(r"\w+_\w+", lambda found: words.get(found.group(), found.group()), text)


def _choices(origin: Origin) -> list[str]:
    return [str(value) for value in origin.known.values]


def value_of(
    known: Parameter, value: Any, place: str, log: Log, beside: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A value of Olive's as parameters of ours; none, and a problem, for a value that cannot be expressed.

    ``beside``: what stands beside it, which some converters look at.
    """
    key = str(value) if isinstance(value, list | dict) else value
    if key in known.refuse:
        log.refuse(place, f"{value!r} cannot be expressed", known.refuse[key])
        return {}
    if known.converter:
        made = log.attempt(place, lambda: converted(known.converter, value, beside or {}))
        if made is None:
            log.unread(place, value)
            return {}
    else:
        made = known.values.get(key, value)
    sets_several = isinstance(made, Mapping) and (known.values or not known.to or known.to in made)
    return dict(made) if sets_several else {known.to: made}
