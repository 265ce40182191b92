"""Write ``x / sum(x^2)^0.5``, spelled out in four operators, as LpNormalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.edits import give_instead, insert_before
from coldpress.graphs.norms import is_power, sum_over_last
from coldpress.graphs.queries import maker, nodes_of
from coldpress.graphs.shapes import infer_shapes
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class PowReduceSumPowDiv2LpNorm(Surgery):
    """Write ``x / sum(x^2)^0.5`` as LpNormalization."""

    def operate(self, model: ir.Model) -> int:
        infer_shapes(model)
        found = [node for node in nodes_of(model, "Div") if _divides_by_length(node)]
        for node in found:
            give_instead(node, insert_before(node, "LpNormalization", [node.inputs[0]], axis=-1, p=2))
        return len(found)


def _divides_by_length(node: ir.Node) -> bool:
    root = maker(node.inputs[1], "Pow", "Sqrt")
    if root is None or (root.op_type == "Pow" and not is_power(root, 0.5)):
        return False
    total = maker(root.inputs[0], "ReduceSum")
    squared = maker(total.inputs[0], "Pow") if total is not None and sum_over_last(total) else None
    return squared is not None and is_power(squared, 2) and squared.inputs[0] is node.inputs[0]
