"""How ``MatMulNBits`` and ``GatherBlockQuantized`` store a weight.

Which encodings are slow is known to ``rules/block_quantized_products.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Encoding:
    """How a weight is stored: ``bits`` 2, 4 or 8 on a grid of blocks along its input dimension."""

    bits: int
    block_size: int
    symmetric: bool


def fitting_block(columns: int, wanted: int) -> int:
    """The largest block up to ``wanted`` that divides the ``columns`` of a weight; ``wanted`` (padded) if none does."""
    return next((size for size in reversed(BLOCK_SIZES) if size <= wanted and columns % size == 0), wanted)


_INDEX = 4


def drop_sorted_index(node: ir.Node) -> bool:
    """Drop the index of groups (``g_idx``) of a MatMulNBits that says what holds without it: column ``k`` belongs to
    group ``k / block_size``. Whether it was there."""
    import numpy as np

    from coldpress.graphs.edits import drop_unread_value
    from coldpress.graphs.queries import constant
    from coldpress.models.onnx_graphs import array_of

    index = node.inputs[_INDEX] if len(node.inputs) > _INDEX else None
    if (tensor := constant(index)) is None or index is None:
        return False
    groups = array_of(tensor).reshape(-1)
    if (groups != np.arange(groups.size) // node.attributes.get_int("block_size", 1)).any():
        return False
    graph = index.graph
    node.replace_input_with(_INDEX, None)
    if len(node.inputs) == _INDEX + 1:
        node.resize_inputs(_INDEX)
    if graph is not None:
        drop_unread_value(graph, index)
    return True
