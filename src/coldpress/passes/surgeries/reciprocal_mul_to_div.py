"""Write ``a * (1 / b)`` as ``a / b``: one operator, and one rounding, instead of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.edits import give_instead, insert_before
from coldpress.graphs.queries import is_onnx, maker, nodes_of
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class ReciprocalMulToDiv(Surgery):
    """Write ``a * (1 / b)`` as ``a / b``."""

    def operate(self, model: ir.Model) -> int:
        found = [(node, place) for node in nodes_of(model, "Mul") if (place := _reciprocal(node)) is not None]
        for node, place in found:
            divisor = node.inputs[place].producer().inputs[0]
            give_instead(node, insert_before(node, "Div", [node.inputs[1 - place], divisor]))
        return len(found)


def _reciprocal(node: ir.Node) -> int | None:
    """Which factor of a product is one over something, in the same graph."""
    makers = [(place, maker(value, "Reciprocal")) for place, value in enumerate(node.inputs)]
    return next((place for place, one in makers if one is not None and is_onnx(one) and one.graph is node.graph), None)
