"""Simplify an ONNX graph: constants are folded, and what is superfluous, doubled or unread is removed.

The rewriting rules of onnxscript and the passes of onnx_ir, applied until nothing changes. Large tensors stay in their
files and are not folded. What the graph computes stays the same, to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from coldpress.errors import ColdpressError
from coldpress.graphs.imported.simplify import drop_lost_inputs, remove_identities, share_equal_tensors
from coldpress.graphs.imported.tools import blaming
from coldpress.graphs.shapes import infer_shapes
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import SAME, Closeness, option
from coldpress.parts.graph_pass import GraphContext, GraphPass, Rewritten
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_FOLDED_BYTES = 1 << 18


@dataclass(frozen=True)
class OnnxPeepholeOptimizer(GraphPass):
    """Simplify an ONNX graph: constants are folded, and what is superfluous, doubled or unread is removed."""

    version: ClassVar[int] = 4
    needs: ClassVar[tuple[str, ...]] = ("onnxscript",)

    onnxscript_optimize: bool = option("fold constants and apply onnxscript's rewriting rules", True)
    remove_duplicates: bool = option("compute equal things once, and store equal tensors once", True)
    output_size_limit: int = option("largest tensor that folding may make, in bytes", _FOLDED_BYTES)

    @property
    def closeness(self) -> Closeness:
        return SAME

    def check(self, model: Model | Planned, target: Target) -> None:
        if not self.onnxscript_optimize and not self.remove_duplicates:
            raise ColdpressError("everything is switched off, so nothing would change", hint="leave the pass out")
        super().check(model, target)

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        ctx.progress(f"simplifying {ctx.name}", 0, 1)
        before = graph.graph.num_nodes()
        _note_types(graph)
        with blaming("onnxscript's optimizer", ctx.name):
            self._simplify(graph)
        return Rewritten(graph, (f"{before} nodes became {graph.graph.num_nodes()}",))

    def _simplify(self, model: ir.Model) -> None:
        from onnx_ir.passes import Sequential, common

        replaceable = {str(value.name) for value in model.graph.inputs if value.is_initializer()}
        if self.onnxscript_optimize:
            from onnxscript.optimizer import optimize_ir

            optimize_ir(model, num_iterations=4, output_size_limit=self.output_size_limit, inline=False)
        if self.remove_duplicates:
            common.CommonSubexpressionEliminationPass()(model)
            share_equal_tensors(model)
        remove_identities(model)
        Sequential(common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass())(model)
        drop_lost_inputs(model, replaceable)


def _note_types(model: ir.Model) -> None:
    """Note the types of all values, as rules ask for them without asking whether they are known; shapes stay as they
    were."""
    known = {value: value.shape for graph in model.graphs() for node in graph for value in node.outputs}
    infer_shapes(model)
    for value, shape in known.items():
        value.shape = shape
