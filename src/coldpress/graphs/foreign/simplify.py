"""Simplifications that keep to what the passes of onnx_ir forget: names of outputs, and the borders of subgraphs."""

from __future__ import annotations

import onnx_ir as ir


def remove_identities(model: ir.Model) -> None:
    """Let readers of an Identity read its input instead, and drop it.

    One that gives an output stays, unless its input is made in the same graph and is no output itself: then that takes its name.
    A subgraph must not hand out a value of the graph around it.
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
