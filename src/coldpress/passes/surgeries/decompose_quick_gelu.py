"""Write ONNX Runtime's QuickGelu as ``x * sigmoid(alpha * x)`` in operators of ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.edits import add_constant, give_instead, insert_before
from coldpress.graphs.queries import CONTRIB
from coldpress.graphs.shapes import infer_shapes
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class DecomposeQuickGelu(Surgery):
    """Write ONNX Runtime's QuickGelu in operators of ONNX."""

    def operate(self, model: ir.Model) -> int:
        infer_shapes(model)
        nodes = [node for node in model.graph.all_nodes() if (node.domain, node.op_type) == (CONTRIB, "QuickGelu")]
        found = [node for node in nodes if node.inputs[0] is not None and node.inputs[0].dtype is not None]
        for node in found:
            value = node.inputs[0]
            alpha = node.attributes.get_float("alpha", 1.702)
            factor = add_constant(node.graph, f"{node.outputs[0].name}/alpha", alpha, value.dtype)
            gate = insert_before(node, "Sigmoid", [insert_before(node, "Mul", [value, factor], "scaled")])
            give_instead(node, insert_before(node, "Mul", [value, gate]))
        return len(found)
