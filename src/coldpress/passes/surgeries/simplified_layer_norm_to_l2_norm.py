"""Write SimplifiedLayerNormalization, which is ONNX Runtime's norm of the root mean square, as LpNormalization and a
product, which NPUs have.

A SkipSimplifiedLayerNormalization becomes an Add in front of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.edits import give_instead, insert_before, replace_value
from coldpress.graphs.norms import l2_norm
from coldpress.graphs.queries import is_read
from coldpress.graphs.shapes import infer_shapes
from coldpress.parts import Closeness
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir

_SKIP = "SkipSimplifiedLayerNormalization"


@dataclass(frozen=True)
class SimplifiedLayerNormToL2Norm(Surgery):
    """Write ONNX Runtime's norms of the root mean square as LpNormalization and a product."""

    closeness = Closeness(0.01, "the epsilon of the norm is left out")

    def operate(self, model: ir.Model) -> int:
        infer_shapes(model)
        nodes = [node for node in model.graph.all_nodes() if node.op_type in (_SKIP, "SimplifiedLayerNormalization")]
        found = [node for node in nodes if _fits(node)]
        for node in found:
            is_skip = node.op_type == _SKIP
            values = _sum(node) if is_skip else node.inputs[0]
            scale = node.inputs[2 if is_skip else 1]
            normed = l2_norm(node, values, int(scale.shape[-1]))
            give_instead(node, insert_before(node, "Mul", [normed, scale], "scaled"))
        return len(found)


def _fits(node: ir.Node) -> bool:
    """Whether the weight has a known size, and nobody reads the mean or the deviation."""
    scale = node.inputs[2 if node.op_type == _SKIP else 1]
    return (
        scale is not None
        and bool(scale.shape)
        and not any(value.name and is_read(value) for value in node.outputs[1:3])
    )


def _sum(node: ir.Node) -> ir.Value:
    """What a norm with a skip adds up first, which it gives, too."""
    values = insert_before(node, "Add", node.inputs[:2], "sum")
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    values = values if bias is None else insert_before(node, "Add", [values, bias], "biased")
    if len(node.outputs) > 3 and is_read(node.outputs[3]):
        replace_value(node.outputs[3], values)
    return values
