"""Drop the index of groups (``g_idx``) of products with few bits where it says what holds without it: no CPU kernel
that reads one is fast.

That is so where column ``k`` belongs to group ``k / block_size``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldpress.graphs.edits import drop_unread_value
from coldpress.graphs.queries import constant
from coldpress.models.onnx_graphs import array_of
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir

_INDEX = 4


@dataclass(frozen=True)
class RemoveGidxFromMatMulNBits(Surgery):
    """Drop an index of groups that says what holds without it."""

    def operate(self, model: ir.Model) -> int:
        found = [node for node in model.graph.all_nodes() if node.op_type == "MatMulNBits" and _is_in_order(node)]
        for node in found:
            index = node.inputs[_INDEX]
            node.replace_input_with(_INDEX, None)
            if len(node.inputs) == _INDEX + 1:
                node.resize_inputs(_INDEX)
            drop_unread_value(model.graph, index)
        return len(found)


def _is_in_order(node: ir.Node) -> bool:
    tensor = constant(node.inputs[_INDEX]) if len(node.inputs) > _INDEX else None
    if tensor is None:
        return False
    index = array_of(tensor).reshape(-1)
    return bool((index == np.arange(index.size) // node.attributes.get_int("block_size", 1)).all())
