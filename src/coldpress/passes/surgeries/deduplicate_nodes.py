"""Compute once what several nodes compute alike: the same operator on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class DeduplicateNodes(Surgery):
    """Compute once what several nodes compute alike."""

    def operate(self, model: ir.Model) -> int:
        from onnx_ir.passes.common import CommonSubexpressionEliminationPass

        before = _count(model)
        CommonSubexpressionEliminationPass()(model)
        return before - _count(model)


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
