"""The parameters of a decoder layer, each read when somebody asks for it, and changed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from coldpress.quant.grid import Floats

Change = Callable[[Floats], Floats]


class Weights(Mapping[str, Floats]):
    """Parameters in float32 by their names in the checkpoint. ``read`` gives one; ``changes``: what is done to it then.

    So a layer with hundreds of experts can be scaled or rounded without being in memory.
    """

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], Floats],
        changes: Mapping[str, tuple[Change, ...]] | None = None,
    ):
        self._names, self._read, self._changes = dict.fromkeys(names), read, changes or {}

    def __getitem__(self, name: str) -> Floats:
        value = self._read(name)
        for change in self._changes.get(name, ()):
            value = change(value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def touched(self) -> set[str]:
        """Those that something is done to."""
        return set(self._changes)

    def changed(self, changes: Mapping[str, Change]) -> Weights:
        """These weights, with one more change to some of them."""
        more = {name: (*self._changes.get(name, ()), change) for name, change in changes.items()}
        return Weights(self._names, self._read, {**self._changes, **more})

    def held(self, names: Iterable[str]) -> Weights:
        """These weights, ``names`` of them read now and kept."""
        kept = {name: self[name] for name in names}
        return Weights(self._names, lambda name: kept[name] if name in kept else self[name])
