"""Forget the shapes and types that are noted of values inside a graph, where they say what no longer holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RemoveShapes(Surgery):
    """Forget the shapes and types that are noted of values inside a graph."""

    def operate(self, model: ir.Model) -> int:
        values = [value for node in model.graph.all_nodes() for value in node.outputs if not value.is_graph_output()]
        noted = [value for value in values if value.shape is not None or value.type is not None]
        for value in noted:
            value.shape, value.type = None, None
        return len(noted)
