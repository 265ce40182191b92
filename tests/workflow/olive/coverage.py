"""Which keys of a configuration of Olive's its translation passes over: deleted, they change nothing, and no note names
them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from coldpress.workflow.olive.translation import Translation, translate

Path = tuple[str | int, ...]


def keys_of(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every key, at any depth."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(value, dict):
            yield (*path, key)
        yield from keys_of(inner, (*path, key))


def passed_over(config: dict[str, Any]) -> list[str]:
    """Places of the keys without which the workflow and all errors are the same, though no note says so."""
    whole = translate(config)
    named = [_parted(note) for note in whole.notes]
    return [
        _place(path)
        for path in keys_of(config)
        if not _is_noted(path, named) and _outcome(translate(_without(config, path))) == _outcome(whole)
    ]


def _is_noted(path: Path, notes: list[tuple[str, list[str]]]) -> bool:
    """Whether a note stands at the key or below it, or at a place above and names the key."""
    place = _place(path)
    for noted, named in notes:
        if noted == place or noted.startswith((f"{place}.", f"{place}[")):
            return True
        if str(path[-1]) in named and place.startswith(noted):
            return True
    return False


def _parted(note: str) -> tuple[str, list[str]]:
    """The place of a note, and the keys below it that it names."""
    place, _, text = note.partition(": ")
    return place, text[:-1].rpartition(" (with ")[2].split(", ") if text.endswith(")") else []


def _outcome(translation: Translation) -> tuple[str, list[tuple[str, str, str]]]:
    problems = sorted((one.place, one.problem, one.hint or "") for one in translation.problems)
    return json.dumps(translation.workflow, sort_keys=True), problems


def _without(value: Any, path: Path) -> Any:
    first, *rest = path
    if not rest:
        return {key: inner for key, inner in value.items() if key != first}
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[first] = _without(value[first], tuple(rest))
    return copied


def _place(path: Path) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
