"""Write products of few bits (MatMulNBits) as DequantizeLinear and MatMul, in operators of ONNX, for runtimes without
ONNX Runtime's own ones.

Weights of 4 bits become int4 or uint4, those of 8 bits int8 or uint8, with a scale for each block (opset 21). ONNX
Runtime itself makes MatMulNBits of such nodes again when it loads a graph with 4 bits; of 8 bits it multiplies floats,
which is slower. Products with 2 bits, or with an index of groups, stay.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts import Closeness, option
from coldpress.parts.graph_pass import GraphContext, GraphPass, Rewritten
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_SHOWN = 200
#: the oldest opset with scales for blocks, and types of 4 bits
_OPSET = 21


@dataclass(frozen=True)
class MatMulNBitsToQdq(GraphPass):
    """Write products of few bits as DequantizeLinear and MatMul."""

    needs: ClassVar[tuple[str, ...]] = ("onnx-ir",)

    signed: bool = option("int4 and int8 instead of uint4 and uint8", False)
    add_zero_point: bool = option("write the zero point also where it is zero, as some compilers want it", False)
    use_transpose_op: bool = option("turn weights by a Transpose, instead of storing them turned", False)
    nodes_to_exclude: tuple[str, ...] = option("globs over names of products that stay", ())

    @property
    def closeness(self) -> Closeness:
        return Closeness(0.05, "MatMulNBits rounds activations to 8 bits at accuracy level 4, MatMul does not")

    def check_graphs(self, graphs: Mapping[str, ir.Model], target: Target) -> None:
        names = [str(node.name) for one in graphs.values() for node in _products(one)]
        if not names:
            raise ColdpressError("no graph has a MatMulNBits", hint="quantize it first: quantize_onnx")
        for pattern in self.nodes_to_exclude:
            if not fnmatch.filter(names, pattern):
                hint = did_you_mean(pattern, names[:_SHOWN])
                raise ColdpressError(f"'{pattern}' matches no product of few bits", hint=hint)

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        from coldpress.graphs.imported.opset import convert
        from coldpress.graphs.qdq_blocks import has_qdq_form, write_as_qdq

        if graph.opset_imports.get("", _OPSET) < _OPSET:
            convert(graph, _OPSET, ctx.name)
        stay = [node for node in _products(graph) if self._is_kept(node) or not has_qdq_form(node)]
        for node in [node for node in _products(graph) if node not in stay]:
            write_as_qdq(node, self.signed, self.add_zero_point, self.use_transpose_op)
        names = ", ".join(str(node.name) for node in stay[:4])
        return Rewritten(graph, (f"{len(stay)} products stay MatMulNBits: {names}",) if stay else ())

    def _is_kept(self, node: ir.Node) -> bool:
        return any(fnmatch.fnmatchcase(str(node.name), pattern) for pattern in self.nodes_to_exclude)


def _products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "MatMulNBits"]
