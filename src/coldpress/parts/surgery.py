"""Surgeries: small changes of a graph that are known by name. The pass `graph_surgeries` does several at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts import SAME, Closeness, find, option, schema

if TYPE_CHECKING:
    import onnx_ir as ir


class Surgery:
    """One change of a graph, wherever it fits. Subclasses are frozen dataclasses; their fields are the parameters.

    ``closeness``: how near the outputs must stay; None where the surgery means to change what a graph computes.
    """

    closeness: ClassVar[Closeness | None] = SAME

    @property
    def renamed(self) -> Mapping[str, str]:
        """Inputs and outputs that get another name: before -> afterwards."""
        return {}

    def check(self, model: ir.Model) -> None:
        """Raise ColdpressError when the parameters do not fit a graph."""

    def operate(self, model: ir.Model) -> int:
        """Change the graph in place; returns in how many places."""
        raise NotImplementedError


@dataclass(frozen=True)
class Operation:
    """A surgery and its parameters, as a workflow names them."""

    type: str = option("name of the surgery")
    parameters: dict[str, Any] = option("parameters of the surgery; what is left out has its default", dict)

    def make(self, where: str = "surgeries") -> Surgery:
        """The surgery itself; raises ColdpressError for an unknown one, or a parameter that it has not."""
        made: Surgery = schema.build(find("surgeries", self.type), self.parameters, f"{where}.parameters")
        return made


@dataclass(frozen=True)
class Renaming(Surgery):
    """Gives ends of a graph, which ``ends`` finds and people call ``what``, other names."""

    what: ClassVar[str] = ""

    old_names: tuple[str, ...] = option("names of today", ())
    new_names: tuple[str, ...] = option("the new names, in the same order", ())

    def ends(self, model: ir.Model) -> Sequence[ir.Value]:
        raise NotImplementedError

    @property
    def renamed(self) -> Mapping[str, str]:
        return dict(zip(self.old_names, self.new_names, strict=False))

    def check(self, model: ir.Model) -> None:
        check_pairs(self, "old_names", "new_names")
        for name in self.old_names:
            end_named(name, ends_by_name(self.ends(model)), self.what)
        others = {str(value.name) for value in _values(model)} - {*self.old_names}
        for name in self.new_names:
            if name in others or self.new_names.count(name) > 1:
                raise ColdpressError(f"new_names: '{name}' would stand for two values", hint="use another name")

    def operate(self, model: ir.Model) -> int:
        ends = ends_by_name(self.ends(model))
        for old, new in self.renamed.items():
            ends[old].name = new
        return len(self.renamed)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from (*model.graph.inputs, *model.graph.initializers.values())
    for node in model.graph:
        yield from node.outputs


def check_names(names: Sequence[str]) -> None:
    """Refuse a list of names that is empty, or has one twice."""
    if not names or len(set(names)) < len(names):
        raise ColdpressError(f"names: {', '.join(names) or 'none'}", hint="give each name once, and one at least")


def check_pairs(surgery: Surgery, one: str, other: str) -> None:
    """Refuse two lists of a surgery that do not belong together item by item, or are empty."""
    counts = len(getattr(surgery, one)), len(getattr(surgery, other))
    if counts[0] != counts[1] or not counts[0]:
        raise ColdpressError(f"{one} names {counts[0]}, {other} {counts[1]}", hint=f"give {other} once for each {one}")


def ends_by_name(ends: Iterable[ir.Value]) -> dict[str, ir.Value]:
    """Inputs or outputs by their names."""
    return {str(value.name): value for value in ends}


def end_named(name: str, ends: Mapping[str, ir.Value], what: str, axis: int | None = None) -> ir.Value:
    """The input or output of a name; ColdpressError where there is none, or none with this axis."""
    if name not in ends:
        raise ColdpressError(f"there is no {what} '{name}'", hint=did_you_mean(name, ends))
    shape = ends[name].shape
    if axis is not None and (shape is None or not 0 <= axis < len(shape)):
        raise ColdpressError(f"dim_idx {axis}: '{name}' has {len(shape or ())} axes, from 0 on")
    return ends[name]


def name_axis(value: ir.Value, axis: int, name: str | int) -> None:
    """Give an axis a name or a size."""
    import onnx_ir as ir

    assert value.shape is not None
    value.shape = ir.Shape([name if place == axis else size for place, size in enumerate(value.shape)])
