"""What changing a graph of onnx-ir takes, beside the passes of onnx_ir."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from coldpress.graphs.queries import CONTRIB, constant, is_read
from coldpress.models.onnx_graphs import array_of


def add_constant(
    graph: ir.Graph, name: str, values: ir.ArrayCompatible | list[int] | float, dtype: ir.DataType
) -> ir.Value:
    """An initializer with these numbers; that of the name, where there is one."""
    if name in graph.initializers:
        return graph.initializers[name]
    return add_initializer(graph, ir.tensor(np.asarray(values, dtype.numpy()), dtype=dtype, name=name))


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer with the name of its tensor."""
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def turned(value: ir.Value) -> ir.Value:
    """The initializer with the numbers of a constant matrix turned over, computed when they are written."""
    graph, tensor, name = value.graph, constant(value), f"{value.name}.turned"
    assert graph is not None and tensor is not None
    if name in graph.initializers:
        return graph.initializers[name]
    rows, columns = tensor.shape
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(array_of(tensor).T), dtype=tensor.dtype, name=name),
        dtype=tensor.dtype,
        shape=ir.Shape([columns, rows]),
        name=name,
    )
    return add_initializer(graph, lazy)


def insert_before(
    old: ir.Node, op_type: str, inputs: Iterable[ir.Value | None], step: str = "", **attributes: Any
) -> ir.Value:
    """A node in front of another, named after that one's result and the ``step``, or its operator; returns what it
    gives."""
    name = f"{old.outputs[0].name}/{step or op_type}"
    node = ir.node(op_type, list(inputs), attributes=attributes, name=name)
    node.outputs[0].name = name
    assert old.graph is not None
    old.graph.insert_before(old, node)
    return node.outputs[0]


def give_instead(old: ir.Node, new: ir.Value) -> None:
    """Let a graph give and read a value, under its name, in place of a node's, which goes if nothing else reads it."""
    replace_value(old.outputs[0], new)
    assert isinstance(old.graph, ir.Graph)
    drop_unread(old.graph, [old])


def contrib_node(
    op_type: str, inputs: Iterable[ir.Value | None], attributes: Mapping[str, Any], name: str | None
) -> ir.Node:
    """A node with an operator of ONNX Runtime's own; it is not in a graph yet."""
    return ir.node(op_type, list(inputs), attributes=attributes, domain=CONTRIB, name=name)


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of a value, and the graph that gives it, read another one, which takes its name and type."""
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, None


def take_place(old: ir.Node, new: ir.Node) -> None:
    """Let a node give what another one gave, under its name, from its place in the graph; that one is unread then."""
    old.graph.insert_before(old, new)
    replace_value(old.outputs[0], new.outputs[0])


def drop_unread(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Remove those of some nodes whose outputs nobody reads, and the nodes and initializers that only they read."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.graph is not graph or any(map(is_read, node.outputs)):
            continue
        read = [value for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        waiting += [before for value in read if (before := value.producer()) is not None]
        for value in read:
            drop_unread_value(graph, value)


def drop_unread_value(graph: ir.Graph, value: ir.Value) -> None:
    """Remove an initializer that nobody reads; one that is an input, too, stays, as it may be fed."""
    if value.is_initializer() and not value.is_graph_input() and not is_read(value):
        graph.initializers.pop(str(value.name), None)


def give_as_float(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Let a graph give a value as float32, under a name of its own."""
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=name)
    cast.outputs[0].name, cast.outputs[0].dtype = name, ir.DataType.FLOAT
    graph.append(cast)
    graph.outputs.append(cast.outputs[0])


def forget_shapes(graph: ir.Graph) -> None:
    """Leave types and shapes of what nodes give to the runtime, as they may no longer hold."""
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None
