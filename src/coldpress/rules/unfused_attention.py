"""Attention in single operators: scores of all positions among themselves are written out, and read again.

A fused operator (Attention, MultiHeadAttention, GroupQueryAttention) computes them block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.graphs.queries import constant, maker, nodes_of, readers
from coldpress.parts import Finding, Rule, place_of
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

#: what may stand between scores and their softmax, and between that and the product with values
_BETWEEN = ("Add", "Div", "Mul", "Where", "Cast", "Reshape", "Identity")
_PRODUCTS = ("MatMul", "FusedMatMul", "Einsum")


@dataclass(frozen=True)
class UnfusedAttention(Rule):
    """A softmax between two products of activations."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        found = [node for node in nodes_of(graph, "Softmax") if _comes_of_a_product(node) and _feeds_a_product(node)]
        if found:
            yield Finding(
                "attention in single operators",
                "fuse it: the pass ort_transformers_optimization",
                place_of(found),
                severity="warning",
            )


def _comes_of_a_product(softmax: ir.Node) -> bool:
    node = maker(softmax.inputs[0])
    for _ in range(len(_BETWEEN)):
        if node is None:
            return False
        if node.op_type in _PRODUCTS:
            return all(constant(value) is None for value in node.inputs)
        made = [maker(value) for value in node.inputs] if node.op_type in _BETWEEN else []
        node = next(
            (one for one in made if one is not None and one.op_type in (*_BETWEEN, "MatMul", "FusedMatMul")), None
        )
    return False


def _feeds_a_product(softmax: ir.Node) -> bool:
    nodes = readers(softmax.outputs[0])
    nodes += [further for node in nodes if node.op_type in _BETWEEN for further in readers(node.outputs[0])]
    products = [node for node in nodes if node.op_type in _PRODUCTS]
    return any(constant(value) is None for node in products for value in node.inputs[1:])
