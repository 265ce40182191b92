"""Take inputs off a graph that no node reads, or that are optional for those that do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.parts import option
from coldpress.parts.surgery import Surgery, check_names, end_named, ends_by_name

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RemoveInputs(Surgery):
    """Take inputs off a graph that no node needs."""

    closeness = None

    names: tuple[str, ...] = option("names of inputs", ())

    def check(self, model: ir.Model) -> None:
        check_names(self.names)
        for name in self.names:
            end_named(name, ends_by_name(model.graph.inputs), "input")

    def operate(self, model: ir.Model) -> int:
        for name in self.names:
            value = ends_by_name(model.graph.inputs)[name]
            for node, place in list(value.uses()):
                node.replace_input_with(place, None)
            model.graph.inputs.remove(value)
        return len(self.names)
