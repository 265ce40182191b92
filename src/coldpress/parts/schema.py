"""Plain data to dataclasses and back, with the path to what is wrong and a suggestion."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from coldpress.errors import ColdpressError, did_you_mean

T = TypeVar("T")


class Misfit(ColdpressError):
    """Data that does not fit; ``place`` is the path to it, such as ``passes[0].parameters.bits``."""

    def __init__(self, place: str, problem: str, hint: str | None = None):
        super().__init__(f"{place or 'the request'}: {problem}", hint=hint)
        self.place, self.problem = place, problem

    def __reduce__(self) -> tuple[object, ...]:
        return Misfit, (self.place, self.problem, self.hint)


def build(cls: type[T], data: Any, where: str = "") -> T:
    """An instance of the dataclass ``cls`` from plain data.

    Raises Misfit for a key that is not a field (with the closest one), a missing key, a value of the wrong type or
    one that is not among a field's choices; ``where`` is the path to ``data``.
    """
    import msgspec

    _check_keys(cls, data, where)
    try:
        made = msgspec.convert(data, cls, strict=True)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        place = f"{where}{path.rstrip('`')}".strip(".")
        raise _misfit(cls, place, problem) from None
    _check_choices(made, where)
    return made


_WRONG_TYPE = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
#: the types that data has in YAML and JSON, as people call them
_CALLED = {"array": "a list", "object": "a mapping", "str": "text", "int": "a whole number", "float": "a number",
           "bool": "true or false", "null": "nothing"}  # fmt: skip


def _misfit(cls: type[Any], place: str, problem: str) -> Misfit:
    """What msgspec found wrong, in the words of somebody who writes a file."""
    if match := _MISSING.match(problem):
        field = next((one for one in dataclasses.fields(cls) if one.name == match[1]), None)
        meant = field.metadata.get("help", "") if field and not place else ""
        return Misfit(place, f"'{match[1]}' is missing", f"add '{match[1]}: ...'{meant and f': {meant}'}")
    if match := _WRONG_TYPE.match(problem):
        wanted = " or ".join(_CALLED.get(one.strip(), one.strip()) for one in match[1].split("|"))
        found = _CALLED.get(match[2], match[2])
        bracketed = "array" in match[1] and match[2] in ("str", "int", "float")
        hint = "put it in brackets: [...]" if bracketed else "`coldpress show --schema` writes the types of all keys"
        return Misfit(place, f"{found} stands where {wanted} belongs", hint)
    return Misfit(place, f"{problem[0].lower()}{problem[1:]}")


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as what JSON and YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check_keys(cls: type[Any], data: Any, where: str) -> None:
    """Refuse keys that no field has; msgspec would pass over them."""
    if not dataclasses.is_dataclass(cls) or not isinstance(data, Mapping):
        return
    hints = _hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key, value in data.items():
        place = f"{where}.{key}".strip(".")
        if key not in known:
            raise Misfit(place, f"there is no '{key}' here", did_you_mean(str(key), known))
        for inner, items in _dataclasses_in(hints[key], value, place):
            _check_keys(inner, items[0], items[1])


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """The types of a class's fields; to read them takes longer than all else here."""
    return typing.get_type_hints(cls)


def _dataclasses_in(hint: Any, value: Any, where: str) -> list[tuple[Any, tuple[Any, str]]]:
    if dataclasses.is_dataclass(hint):
        return [(hint, (value, where))]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple) and isinstance(value, list):
        return [(arguments[0], (item, f"{where}[{i}]")) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return [(arguments[1], (item, f"{where}.{key}")) for key, item in value.items()]
    if origin in (typing.Union, types.UnionType):
        return [found for option in arguments for found in _dataclasses_in(option, value, where)]
    return []


def _check_choices(made: Any, where: str) -> None:
    """Refuse values that are not among the choices of their field, at any depth."""
    for field in dataclasses.fields(made):
        choices, value = field.metadata.get("choices"), getattr(made, field.name)
        place = f"{where}.{field.name}".strip(".")
        if choices and value is not None and value not in choices:
            hint = (
                did_you_mean(value, choices) if isinstance(value, str) else f"use one of {', '.join(map(str, choices))}"
            )
            raise Misfit(place, f"{value!r} is not a choice", hint)
        for inner, path in _inner_dataclasses(value, place):
            _check_choices(inner, path)


def _inner_dataclasses(value: Any, where: str) -> list[tuple[Any, str]]:
    if dataclasses.is_dataclass(value):
        return [(value, where)]
    if isinstance(value, tuple):
        return [found for i, item in enumerate(value) for found in _inner_dataclasses(item, f"{where}[{i}]")]
    if isinstance(value, Mapping):
        return [found for key, item in value.items() for found in _inner_dataclasses(item, f"{where}.{key}")]
    return []
