"""Write each Gemm as a MatMul and an Add: what quantizers to few bits look for, and products of more than two axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.edits import add_constant, give_instead, insert_before, turned
from coldpress.graphs.queries import constant, nodes_of
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class GemmToMatMulAdd(Surgery):
    """Write each Gemm as a MatMul and an Add."""

    def operate(self, model: ir.Model) -> int:
        found = [node for node in nodes_of(model, "Gemm") if node.inputs[0] is not None and _is_float(node)]
        for gemm in found:
            left = _operand(gemm, 0, "transA")
            product = insert_before(gemm, "MatMul", [left, _operand(gemm, 1, "transB")])
            total = _scaled(gemm, product, "alpha")
            if len(gemm.inputs) > 2 and gemm.inputs[2] is not None:
                total = insert_before(gemm, "Add", [total, _scaled(gemm, gemm.inputs[2], "beta")])
            give_instead(gemm, total)
        return len(found)


def _is_float(gemm: ir.Node) -> bool:
    """Whether it is known to multiply floats, or not scaled at all: a scale has their type."""
    is_scaled = any(gemm.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta"))
    return not is_scaled or gemm.inputs[0].dtype is not None


def _operand(gemm: ir.Node, place: int, flag: str) -> ir.Value:
    """An operand as a MatMul takes it; a constant is turned over once, when it is written."""
    value: ir.Value = gemm.inputs[place]
    if not gemm.attributes.get_int(flag, 0):
        return value
    if value.is_initializer() and constant(value) is not None:
        return turned(value)
    return insert_before(gemm, "Transpose", [value], flag, perm=[1, 0])


def _scaled(gemm: ir.Node, value: ir.Value, name: str) -> ir.Value:
    factor, graph = gemm.attributes.get_float(name, 1.0), gemm.graph
    if factor == 1:
        return value
    number = add_constant(graph, f"{gemm.outputs[0].name}/{name}.value", factor, gemm.inputs[0].dtype)
    return insert_before(gemm, "Mul", [value, number], name)
