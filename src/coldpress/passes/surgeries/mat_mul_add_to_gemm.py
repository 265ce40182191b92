"""Write each product with a constant matrix, and the bias behind it, as one Gemm: what compilers for NPUs look for.

A Gemm has two axes. Around one whose input has more, a Reshape makes rows of all but the last axis, and another undoes
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.edits import add_constant, give_instead, insert_before
from coldpress.graphs.queries import constant, nodes_of, only_reader
from coldpress.graphs.shapes import infer_shapes
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class MatMulAddToGemm(Surgery):
    """Write each product with a constant matrix and its bias as one Gemm."""

    def operate(self, model: ir.Model) -> int:
        infer_shapes(model)
        pairs = [(product, add) for product in nodes_of(model, "MatMul") if (add := _bias_of(product)) is not None]
        for product, add in pairs:
            bias = add.inputs[1 - list(add.inputs).index(product.outputs[0])]
            rows = product.inputs[0]
            is_flat = len(rows.shape) == 2
            if not is_flat:
                rows = insert_before(
                    add, "Reshape", [rows, _numbers(add, "rows", [-1, product.inputs[1].shape[0]])], "in"
                )
            made = insert_before(add, "Gemm", [rows, product.inputs[1], bias])
            if not is_flat:
                made = insert_before(add, "Reshape", [made, _shape_behind(product, add)], "out")
            give_instead(add, made)
        return len(pairs)


def _bias_of(product: ir.Node) -> ir.Node | None:
    """The Add that alone reads a product of an input with known axes and a constant matrix, if it adds a row."""
    values, weight = product.inputs
    add = only_reader(product.outputs[0])
    tensor = constant(weight)
    if add is None or add.op_type != "Add" or tensor is None or len(tensor.shape) != 2 or values.shape is None:
        return None
    row = constant(add.inputs[1 - list(add.inputs).index(product.outputs[0])])
    fits = row is not None and len(row.shape) == 1 and row.shape[0] in (1, tensor.shape[1])
    return add if fits and len(values.shape) >= 2 else None


def _shape_behind(product: ir.Node, add: ir.Node) -> ir.Value:
    """The shape of a product: that of its input, but for the last axis."""
    columns = int(product.inputs[1].shape[1])
    sizes = list(product.inputs[0].shape[:-1])
    if sum(not isinstance(size, int) for size in sizes) < 2:
        return _numbers(add, "shape", [*(size if isinstance(size, int) else -1 for size in sizes), columns])
    whole = insert_before(add, "Shape", [product.inputs[0]], "whole")
    limits = [_numbers(add, name, [number]) for name, number in (("start", 0), ("stop", -1))]
    before = insert_before(add, "Slice", [whole, *limits], "before")
    return insert_before(add, "Concat", [before, _numbers(add, "columns", [columns])], "shape", axis=0)


def _numbers(node: ir.Node, name: str, values: list[int]) -> ir.Value:
    import onnx_ir as ir

    return add_constant(node.graph, f"{node.outputs[0].name}/{name}.value", values, ir.DataType.INT64)
