"""Simplifications that keep to what the passes of onnx_ir forget: names of outputs, and the borders of subgraphs."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import onnx_ir as ir


def remove_identities(model: ir.Model) -> None:
    """Let readers of an Identity read its input instead, and drop it.

    One that gives an output stays, unless its input is made in the same graph and is no output itself: then that takes
    its name. A subgraph must not hand out a value of the graph around it.
    """
    for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
        for node in [node for node in graph if node.op_type == "Identity" and node.domain in ("", "ai.onnx")]:
            _remove(graph, node)


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    value, output = node.inputs[0], node.outputs[0]
    if value is None:
        return
    if output.is_graph_output():
        maker = value.producer()
        if maker is None or maker.graph is not graph or value.is_graph_output():
            return
        ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
        name, output.name = output.name, None
        value.name, value.type, value.shape = name, output.type or value.type, output.shape or value.shape
    else:
        ir.convenience.replace_all_uses_with(output, value)
    graph.remove(node, safe=True)


def share_equal_tensors(model: ir.Model) -> None:
    """Let equal initializers of a graph be one; those that may be replaced, or are outputs, stay."""
    for graph in model.graphs():
        alike: dict[Any, list[ir.Value]] = defaultdict(list)
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and not value.is_graph_input() and not value.is_graph_output():
                alike[tensor.dtype, tuple(tensor.shape)].append(value)
        for values in alike.values():
            if len(values) > 1:
                _share(graph, values)


def _share(graph: ir.Graph, values: list[ir.Value]) -> None:
    kept: dict[Any, ir.Value] = {}
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        is_text = tensor.dtype == ir.DataType.STRING
        content = tuple(tensor.string_data()) if is_text else hashlib.sha256(tensor.tobytes()).digest()
        first = kept.setdefault(content, value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[str(value.name)]


def drop_lost_inputs(model: ir.Model, replaceable: set[str]) -> None:
    """Inputs that were initializers, and of which only the input is left, as nobody reads them, go, too."""
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in replaceable and not value.is_initializer()]:
        graph.inputs.remove(value)
