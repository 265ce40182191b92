"""Whether the passes of a space can follow on each other at all; said before any work."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.search.space import Space, some_values
from coldpress.target import Target
from coldpress.workflow import Step

#: combinations of one pass's parameters of which one must be possible
_LOOKED_THROUGH = 256


def check_passes(space: Space, source: Model | Planned, target: Target) -> set[str]:
    """The formats that the last pass may give.

    Raises ColdpressError where a pass gets a format that it does not take, whatever the alternatives before it that
    lead there, and for a pass of which no combination of parameters is possible.
    """
    reached: dict[str, tuple[Model | Planned, list[str]]] = {source.format: (source, [])}
    for slot in space.alternatives():
        after: dict[str, tuple[Model | Planned, list[str]]] = {}
        for model, way in reached.values():
            for option in slot:
                made, name = (model, "") if option is None else _checked(option, model, target, way)
                after.setdefault(made.format, (made, [*way, name]))
        reached = after
    return set(reached)


def _checked(option: Space, model: Model | Planned, target: Target, way: list[str]) -> tuple[Model | Planned, str]:
    refused: ColdpressError | None = None
    for step in islice(_variants(option), _LOOKED_THROUGH):
        try:
            return step.check(model, target), step.type
        except ColdpressError as error:
            refused = refused or error
    assert refused is not None
    before = " after ".join(reversed([name for name in way if name]))
    where = f" (after {before})" if before else " (when what stands before it is left out)" if way else ""
    raise ColdpressError(f"{refused.message}{where}", hint=refused.hint, exit_code=refused.exit_code) from refused


def _variants(option: Space) -> Iterator[Step]:
    for point in option.points(some_values):
        yield from option.steps_at(point)
