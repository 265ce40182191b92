"""Regular expressions for many module names: the numbers of layers and experts drawn together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def patterns_for(modules: Iterable[str], others: Iterable[str] = ()) -> list[str]:
    """Expressions, to be matched from a name's start, that fit each of ``modules`` and none of ``others``.

    Where names differ from all others in more than numbers, ``\\d+`` stands for each number; else the first number
    (the layer's) is listed and the rest of the name spelled out.
    """
    taken = {_NUMBER.sub("", name) for name in others}
    found: set[str] = set()
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in modules:
        first = _NUMBER.search(name)
        if _NUMBER.sub("", name) not in taken:
            found.add(r"\d+".join(_escaped(part) for part in _NUMBER.split(name)))
        elif first:
            layers[name[: first.start()], name[first.end() :]].add(int(first[0]))
        else:
            found.add(_escaped(name))
    for (before, after), numbers in layers.items():
        found.add(f"{_escaped(before)}({'|'.join(map(str, sorted(numbers)))}){_escaped(after)}")
    return [f"{pattern}$" for pattern in sorted(found)]


def _escaped(text: str) -> str:
    return re.escape(text).replace(r"\_", "_")
