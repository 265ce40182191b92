"""Give an output as the whole numbers that it was dequantized from, with the scale and the zero point beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.errors import ColdpressError
from coldpress.graphs.edits import drop_unread
from coldpress.graphs.queries import maker
from coldpress.graphs.shapes import infer_shapes
from coldpress.parts import option
from coldpress.parts.surgery import Surgery, end_named, ends_by_name

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class ExposeQuantizedOutput(Surgery):
    """Give an output as the whole numbers that it was dequantized from, its scale and its zero point."""

    closeness = None

    output_name: str = option("name of an output that DequantizeLinear gives", "")

    def check(self, model: ir.Model) -> None:
        output = end_named(self.output_name, ends_by_name(model.graph.outputs), "output")
        if maker(output, "DequantizeLinear") is None:
            raise ColdpressError(
                f"'{self.output_name}' is not given by a DequantizeLinear", hint="quantize the model first"
            )

    def operate(self, model: ir.Model) -> int:
        infer_shapes(model)
        graph = model.graph
        node = maker(ends_by_name(graph.outputs)[self.output_name], "DequantizeLinear")
        assert node is not None
        given = [value for value in node.inputs if value is not None]
        graph.outputs.remove(node.outputs[0])
        graph.outputs.extend(given)
        drop_unread(graph, [node])
        return 1
