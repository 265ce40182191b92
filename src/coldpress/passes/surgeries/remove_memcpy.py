"""Take out copies between processor and GPU that ONNX Runtime wrote into a graph; it puts them in when it loads one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.edits import give_instead
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RemoveMemcpy(Surgery):
    """Take out copies between processor and GPU."""

    def operate(self, model: ir.Model) -> int:
        from onnx_ir.passes.common import TopologicalSortPass

        found = [node for node in model.graph.all_nodes() if node.op_type in ("MemcpyToHost", "MemcpyFromHost")]
        for node in found:
            value = node.inputs[0]
            if node.outputs[0].is_graph_output() and value.producer() is None:
                node.op_type, node.domain = "Identity", ""  # an input, given as it is
            elif node.outputs[0].is_graph_output() and not value.is_graph_output():
                give_instead(node, value)
            else:
                node.outputs[0].replace_all_uses_with(value)
                node.graph.remove(node, safe=True)
        TopologicalSortPass()(model)
        return len(found)
