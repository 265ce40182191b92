"""Note the types and shapes of all values in a graph, those of ONNX Runtime's own operators included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs import shapes
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class InferShapes(Surgery):
    """Note the types and shapes of all values in a graph."""

    def operate(self, model: ir.Model) -> int:
        before = _known(model)
        shapes.infer_shapes(model)
        return _known(model) - before


def _known(model: ir.Model) -> int:
    return sum(value.shape is not None for node in model.graph.all_nodes() for value in node.outputs)
