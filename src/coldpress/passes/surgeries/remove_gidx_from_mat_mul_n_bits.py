"""Drop the index of groups (``g_idx``) of products with few bits where it says what holds without it: no CPU kernel
that reads one is fast.

That is so where column ``k`` belongs to group ``k / block_size``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.kernels import drop_sorted_index
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RemoveGidxFromMatMulNBits(Surgery):
    """Drop an index of groups that says what holds without it."""

    def operate(self, model: ir.Model) -> int:
        return sum(drop_sorted_index(node) for node in model.graph.all_nodes() if node.op_type == "MatMulNBits")
