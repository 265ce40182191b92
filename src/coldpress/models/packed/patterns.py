"""Names of modules: which are experts, and regular expressions for many, the numbers of layers and experts drawn
together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERT = re.compile(r"\.experts\.\d+\.")


def is_expert(module: str) -> bool:
    """Whether a module belongs to one expert of a mixture; all checkpoints call them ``experts.0``, ``experts.1``,
    ..."""
    return _EXPERT.search(module) is not None


def patterns_for(modules: Iterable[str], others: Iterable[str] = ()) -> list[str]:
    """Expressions, to be matched from a name's start, that fit each of ``modules`` and none of ``others``.

    Where names differ from all others in more than numbers, ``\\d+`` stands for each number; else the first number
    (the layer's) is listed, and the rest of the name spelled out where others of that layer differ in numbers only.
    """
    kinds, places = set(), set()
    for name in others:
        kinds.add(_NUMBER.sub("", name))
        places.add(_in_layer(name))
    found: set[str] = set()
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in modules:
        first = _NUMBER.search(name)
        if _NUMBER.sub("", name) not in kinds:
            found.add(_any_number(name))
        elif first:
            rest = _escaped(name[first.end() :]) if _in_layer(name) in places else _any_number(name[first.end() :])
            layers[name[: first.start()], rest].add(int(first[0]))
        else:
            found.add(_escaped(name))
    for (before, rest), numbers in layers.items():
        found.add(f"{_escaped(before)}({'|'.join(map(str, sorted(numbers)))}){rest}")
    return [f"{pattern}$" for pattern in sorted(found)]


def _in_layer(name: str) -> str:
    """A name without any number but the first."""
    first = _NUMBER.search(name)
    return name if first is None else name[: first.end()] + _NUMBER.sub("", name[first.end() :])


def _any_number(name: str) -> str:
    return r"\d+".join(_escaped(part) for part in _NUMBER.split(name))


def _escaped(text: str) -> str:
    return re.escape(text).replace(r"\_", "_")
