"""Nodes that compute the same at every run, as all that they read is constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.graphs.queries import is_onnx, known_before
from coldpress.parts import Finding, Rule, place_of
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

#: not folded on purpose: they keep weights small, or shared
_KEPT = ("Constant", "DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity", "Reshape")
#: larger results are not worth their bytes
_MOST_BYTES = 1 << 18


@dataclass(frozen=True)
class UnfoldedConstants(Rule):
    """Nodes whose inputs are all constant."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        found = _found(graph)
        if found:
            yield Finding(
                f"{found[0].op_type} of constants, computed at every run",
                "fold it: the pass onnx_peephole_optimizer",
                place_of(found),
                severity="warning",
            )

    def mend(self, graph: ir.Model, target: Target) -> int:
        from onnx_ir.passes.common import RemoveUnusedNodesPass
        from onnxscript.optimizer import fold_constants

        before = len(_found(graph))
        fold_constants(graph, output_size_limit=_MOST_BYTES)
        RemoveUnusedNodesPass()(graph)
        return before - len(_found(graph))


def _found(graph: ir.Model) -> list[ir.Node]:
    known = known_before(graph.graph)
    return [
        node
        for node in graph.graph
        if node.inputs and is_onnx(node) and node.op_type not in _KEPT and known.issuperset(node.outputs)
    ]
