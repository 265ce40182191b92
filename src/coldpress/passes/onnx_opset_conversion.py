"""Rewrite an ONNX graph for another opset, newer or older.

onnxscript's converter goes to newer opsets; where it cannot, and for older ones, that of onnx is used. An opset that an
operator of the graph does not have is refused. Tensors stay in their files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from coldpress.errors import ColdpressError
from coldpress.graphs.imported.opset import convert
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import SAME, Closeness, option
from coldpress.parts.graph_pass import GraphContext, GraphPass, Rewritten
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_OLDEST = 7


@dataclass(frozen=True)
class OnnxOpsetConversion(GraphPass):
    """Rewrite an ONNX graph for another opset, newer or older."""

    version: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("onnxscript",)

    target_opset: int = option("version of ONNX's operators", 21)

    @property
    def closeness(self) -> Closeness:
        return SAME

    def check(self, model: Model | Planned, target: Target) -> None:
        from onnx.defs import onnx_opset_version

        newest = onnx_opset_version()
        if not _OLDEST <= self.target_opset <= newest:
            raise ColdpressError(
                f"target_opset: there is no opset {self.target_opset} in this version of onnx",
                hint=f"one from {_OLDEST} to {newest}",
            )
        super().check(model, target)

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        ctx.progress(f"converting {ctx.name}", 0, 1)
        before = graph.opset_imports.get("")
        convert(graph, self.target_opset, ctx.name)
        return Rewritten(graph, (f"opset {before} became {self.target_opset}",))
