"""Put the inputs of a graph into another order, which matters to runtimes that feed them by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.errors import ColdpressError
from coldpress.parts import option
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class ReorderInputs(Surgery):
    """Put the inputs of a graph into another order."""

    permutation: tuple[int, ...] = option("the number, from 0, that each input had before", ())

    def check(self, model: ir.Model) -> None:
        count = len(model.graph.inputs)
        if sorted(self.permutation) != list(range(count)):
            raise ColdpressError(
                f"permutation {list(self.permutation)} does not name each input once",
                hint=f"the graph has {count} inputs: give the numbers 0 to {count - 1} in the new order",
            )

    def operate(self, model: ir.Model) -> int:
        inputs = list(model.graph.inputs)
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs[place] for place in self.permutation)
        return len(inputs)
