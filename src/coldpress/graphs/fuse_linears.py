"""Joining linear layers that read the same input into one product, and parting those that cannot be one.

One product over stacked rows starts its threads and quantizes its input once instead of two or three times, which for
the narrow layers of small models is a tenth of the time of a token. mobius joins query, key and value itself where
nothing stands between them and the attention; this joins them elsewhere, and gate with up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from coldpress.graphs.edits import add_constant, drop_unread
from coldpress.graphs.linears import Linear, find_linears
from coldpress.graphs.prequantized import stack

#: last parts of the names of layers that may be joined, in the order of their rows
_SIBLINGS = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))


def join_siblings(graph: ir.Graph, sources: Mapping[str, Any]) -> None:
    """Rewrite every complete group of siblings as ``Concat(weights) -> Transpose -> MatMul -> Split``."""
    groups: dict[tuple[int, str], dict[str, Linear]] = {}
    for linear in find_linears(graph, sources):
        parent, _, leaf = linear.module.rpartition(".")
        if len(linear.weights) == 1 and not _has_bias(linear, sources):
            groups.setdefault((id(linear.matmul.inputs[0]), parent), {})[leaf] = linear
    for found in groups.values():
        for names in _SIBLINGS:
            siblings = [found[name] for name in names if name in found]
            if len(siblings) == len(names) and _stack(siblings, sources):
                _join(graph, siblings)


def part_strangers(graph: ir.Graph, sources: Mapping[str, Any]) -> None:
    """Give each part of a fused product that does not stack its own ``Transpose -> MatMul``, and join the results."""
    for linear in list(find_linears(graph, sources)):
        if len(linear.weights) > 1 and not _stack([linear], sources):
            _part(graph, linear)


def _stack(linears: Sequence[Linear], sources: Mapping[str, Any]) -> bool:
    return stack([sources[str(weight.name)] for linear in linears for weight in linear.weights])


def _part(graph: ir.Graph, fused: Linear) -> None:
    old = fused.matmul.outputs[0]
    products = []
    for weight in fused.weights:
        transpose = ir.node("Transpose", [weight], attributes={"perm": [1, 0]})
        product = ir.node("MatMul", [fused.matmul.inputs[0], transpose.outputs[0]])
        transpose.outputs[0].type = product.outputs[0].type = old.type
        graph.insert_before(fused.matmul, [transpose, product])
        products.append(product.outputs[0])
    joined = ir.node("Concat", products, attributes={"axis": -1})
    joined.outputs[0].shape, joined.outputs[0].type = old.shape, old.type
    graph.insert_before(fused.matmul, joined)
    ir.convenience.replace_all_uses_with(old, joined.outputs[0], replace_graph_outputs=True)
    drop_unread(graph, [fused.matmul, *fused.obsolete])


def _has_bias(linear: Linear, sources: Mapping[str, Any]) -> bool:
    return any(
        node.op_type == "Add" and any(value is not None and value.name in sources for value in node.inputs)
        for node, _ in linear.matmul.outputs[0].uses()
    )


def _join(graph: ir.Graph, siblings: list[Linear]) -> None:
    first = siblings[0].matmul
    concat = ir.node("Concat", [linear.weights[0] for linear in siblings], attributes={"axis": 0})
    transpose = ir.node("Transpose", [concat.outputs[0]], attributes={"perm": [1, 0]})
    product = ir.node("MatMul", [first.inputs[0], transpose.outputs[0]])
    sizes = _sizes(graph, siblings)
    split = ir.node("Split", [product.outputs[0], sizes], attributes={"axis": -1}, num_outputs=len(siblings))
    for value in (concat.outputs[0], transpose.outputs[0], product.outputs[0]):
        value.type = first.outputs[0].type
    graph.insert_before(first, [concat, transpose, product, split])
    for linear, output in zip(siblings, split.outputs, strict=True):
        old = linear.matmul.outputs[0]
        output.shape, output.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, output)
        drop_unread(graph, [linear.matmul, *linear.obsolete])


def _sizes(graph: ir.Graph, siblings: list[Linear]) -> ir.Value:
    rows = [linear.rows for linear in siblings]
    return add_constant(graph, "coldpress/split_" + "_".join(map(str, rows)), rows, ir.DataType.INT64)
