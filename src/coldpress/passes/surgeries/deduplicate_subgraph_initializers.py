"""Let graphs inside a graph (of If, Loop and Scan) store equal constants once, and read those of the graph around them.

Readers of files never see two initializers of one name: the last one counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.imported.simplify import share_equal_tensors
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class DeduplicateSubgraphInitializers(Surgery):
    """Let graphs inside a graph store equal constants once."""

    def operate(self, model: ir.Model) -> int:
        from onnx_ir.passes.common import LiftSubgraphInitializersToMainGraphPass

        before = _count(model)
        LiftSubgraphInitializersToMainGraphPass()(model)
        share_equal_tensors(model)
        return before - _count(model)


def _count(model: ir.Model) -> int:
    return sum(len(graph.initializers) for graph in model.graphs())
