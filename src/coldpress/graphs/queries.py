"""What one asks of a graph of onnx-ir, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

CONTRIB = "com.microsoft"


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    """Whether a node is one of these operators of ONNX itself; of any of them where none is named."""
    return node.domain in ("", "ai.onnx") and (not op_types or node.op_type in op_types)


def maker(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that gives a value, if its operator is one of these; any where none is named."""
    node = value.producer() if value is not None else None
    return node if node is not None and (not op_types or node.op_type in op_types) else None


def is_read(value: ir.Value) -> bool:
    """Whether a node reads a value, or the graph gives it."""
    return bool(value.uses()) or value.is_graph_output()


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, each as often as it does."""
    return [node for node, _ in value.uses()]


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, once; None where there are others, or the graph gives it."""
    found = readers(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


def constant(value: ir.Value | None) -> Any:
    """The tensor of an initializer or of a Constant node; None for what is computed or may be fed."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value if value.is_initializer() else None
    node = maker(value, "Constant")
    if node is None or not is_onnx(node) or "value" not in node.attributes:
        return None
    return node.attributes["value"].as_tensor()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of a graph, of graphs inside it, and of functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def nodes_of(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """The nodes of a graph, and of graphs inside it, that are one of these operators of ONNX itself."""
    return [node for node in model.graph.all_nodes() if is_onnx(node, *op_types)]


def known_before(graph: ir.Graph) -> set[ir.Value]:
    """The values that are known before a graph runs: initializers, and what is computed of them alone."""
    known = set(graph.initializers.values())
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        if known.issuperset(read) and (read or node.op_type == "Constant"):
            known.update(node.outputs)
    return known
