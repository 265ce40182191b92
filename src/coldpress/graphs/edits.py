"""What changing a graph of onnx-ir takes, beside the passes of onnx_ir."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from coldpress.graphs.queries import is_read


def add_constant(
    graph: ir.Graph, name: str, values: ir.ArrayCompatible | list[int] | float, dtype: ir.DataType
) -> ir.Value:
    """An initializer with these numbers; that of the name, where there is one."""
    if name in graph.initializers:
        return graph.initializers[name]
    return add_initializer(graph, ir.tensor(np.asarray(values), dtype=dtype, name=name))


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer with the name of its tensor."""
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def take_place(old: ir.Node, new: ir.Node) -> None:
    """Let a node give what another one gave, under its name, from its place in the graph; that one is unread then."""
    output, made = old.outputs[0], new.outputs[0]
    made.shape, made.type = output.shape, output.type
    old.graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
    made.name, output.name = output.name, None


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
