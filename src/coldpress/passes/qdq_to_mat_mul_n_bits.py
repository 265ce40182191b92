"""Write weights with a scale for each block, as DequantizeLinear in front of MatMul, as ONNX Runtime's MatMulNBits.

Such graphs come from tools that write operators of ONNX alone. ONNX Runtime turns some of them itself, at the level
``extended``, and with 4 bits only; written as MatMulNBits every one has a fast kernel, at any level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from coldpress.errors import ColdpressError
from coldpress.graphs.kernels import Encoding
from coldpress.parts import Closeness, option, refuse
from coldpress.parts.graph_pass import GraphContext, GraphPass, Rewritten
from coldpress.rules.block_quantized_products import slow_encoding
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from coldpress.graphs.qdq_blocks import BlockedProduct


@dataclass(frozen=True)
class QdqToMatMulNBits(GraphPass):
    """Write blocks behind DequantizeLinear as MatMulNBits."""

    needs: ClassVar[tuple[str, ...]] = ("onnx-ir",)

    accuracy_level: int | None = option(
        "what the CPU multiplies in: 0 float, 4 int8; default: 4 on CPUs", None, (0, 1, 2, 3, 4)
    )

    @property
    def closeness(self) -> Closeness:
        return Closeness(0.05, "MatMulNBits rounds activations to 8 bits at accuracy level 4")

    def check_graphs(self, graphs: Mapping[str, ir.Model], target: Target) -> None:
        found = [one for graph in graphs.values() for one in _blocked(graph)]
        if not found:
            raise ColdpressError(
                "no product has a weight with a scale for each block, behind DequantizeLinear",
                hint="this pass is for graphs such as mat_mul_n_bits_to_qdq writes; quantize_onnx quantizes floats",
            )
        for one in found:
            _, _, bits, block = one.facts
            encoding = Encoding(bits, block, symmetric=len(one.dequantize.inputs) < 3)
            refuse(slow_encoding(encoding, self._accuracy(target), target.short_name, str(one.product.name)))

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        from coldpress.graphs.edits import drop_unread
        from coldpress.graphs.qdq_blocks import write_as_n_bits

        found = _blocked(graph)
        for one in found:
            write_as_n_bits(one, self._accuracy(ctx.target))
        drop_unread(graph.graph, [one.product for one in found])
        return Rewritten(graph)

    def _accuracy(self, target: Target) -> int:
        if self.accuracy_level is not None:
            return self.accuracy_level
        return 4 if target.short_name == "cpu" else 0


def _blocked(model: ir.Model) -> list[BlockedProduct]:
    from coldpress.graphs.qdq_blocks import blocked_product

    return [found for node in model.graph if (found := blocked_product(node)) is not None]
