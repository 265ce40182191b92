"""Simplify an ONNX graph: constants are folded, and what is superfluous, doubled or unread is removed.

The rewriting rules of onnxscript and the passes of onnx_ir, applied until nothing changes. Large tensors stay in their
files and are not folded. What the graph computes stays the same, to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from coldpress.errors import ColdpressError
from coldpress.graphs.imported.folder import infer_shapes, load_graph, rewrite_graphs, save_graph
from coldpress.graphs.imported.simplify import drop_lost_inputs, remove_identities, share_equal_tensors
from coldpress.graphs.imported.tools import blaming
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import SAME, Closeness, Context, Pass, option
from coldpress.target import Target

_FOLDED_BYTES = 1 << 18


@dataclass(frozen=True)
class OnnxPeepholeOptimizer(Pass):
    """Simplify an ONNX graph: constants are folded, and what is superfluous, doubled or unread is removed."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    version: ClassVar[int] = 3
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

    def run(self, model: Model, ctx: Context) -> Model:
        remarks: list[str] = []

        def change(file: Path, target: Path) -> None:
            ctx.progress(f"simplifying {file.name}", 0, 1)
            graph = load_graph(file)
            before = graph.graph.num_nodes()
            _note_types(graph)
            with blaming("onnxscript's optimizer", file):
                self._simplify(graph)
            save_graph(graph, target)
            remarks.append(f"{target.name}: {before} nodes became {graph.graph.num_nodes()}")

        rewrite_graphs(model.path, ctx.scratch, change)
        return Model(ctx.scratch, "onnx", "", model.provenance.remarked(*remarks))

    def _simplify(self, model: Any) -> None:
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


def _note_types(model: Any) -> None:
    """Note the types of all values, as rules ask for them without asking whether they are known; shapes stay as they
    were."""
    known = {value: value.shape for graph in model.graphs() for node in graph for value in node.outputs}
    infer_shapes(model)
    for value, shape in known.items():
        value.shape = shape
