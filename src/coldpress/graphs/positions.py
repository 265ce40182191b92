"""Which positions of a step the head gives logits for, and what it gets.

Generation reads the last one. Speculation drafts several tokens and reads the logits of each of them from one step.
"""

from __future__ import annotations

import onnx_ir as ir

from coldpress.graphs.scoring import PICKED, PICKED_LOGITS

HIDDEN_STATES = "hidden_states"
#: the longest step that speculation reads: in onnxruntime-genai 16 drafts, and the token before them
_LONGEST_STEP = 17


def last_position_only(graph: ir.Graph, head_name: str) -> None:
    """Feed the head only the last position of a prompt: the others' logits are never read by a generator."""
    head = _head(graph, head_name)
    pick = ir.node("Gather", [head.inputs[0], _numbers(graph, -1)], attributes={"axis": 1}, name=PICKED)
    _feed(graph, head, pick)
    for output in graph.outputs:
        if output.name == "logits" and output.shape is not None:
            output.shape = ir.Shape([output.shape[0], 1, output.shape[2]])


def positions_of_short_steps(graph: ir.Graph, head_name: str) -> None:
    """Feed the head every position of a step that speculation reads, and of a longer one only the last.

    ``logits`` stays ``[batch, tokens, vocabulary]``, as onnxruntime-genai allocates it before a step: after a longer
    step each position has the logits of the last one.
    """
    head = _head(graph, head_name)
    one = _numbers(graph, 1)
    tokens = _add(graph, head, "Shape", [head.inputs[0]], start=1, end=2)
    is_short = _add(graph, head, "LessOrEqual", [tokens, _numbers(graph, _LONGEST_STEP)])
    first = _add(graph, head, "Where", [is_short, _numbers(graph, 0), _numbers(graph, -1)])
    _feed(graph, head, ir.node("Slice", [head.inputs[0], first, tokens, one], name=PICKED))
    place = next(place for place, output in enumerate(graph.outputs) if output.name == "logits")
    picked = graph.outputs[place]
    shape = ir.node("Concat", [one, tokens, one], attributes={"axis": 0}, name=f"{PICKED}/shape")
    spread = ir.node("Expand", [picked, shape.outputs[0]], name=f"{PICKED}/spread")
    shape.outputs[0].name = f"{PICKED}/shape"
    logits = spread.outputs[0]
    logits.name, logits.type, logits.shape = "logits", picked.type, picked.shape
    picked.name, picked.shape = PICKED_LOGITS, None
    graph.outputs[place] = logits
    graph.extend([shape, spread])


def give_hidden_states(graph: ir.Graph, head_name: str) -> None:
    """Let a graph give what its head gets, of all positions, as the output `HIDDEN_STATES`."""
    hidden = _head(graph, head_name).inputs[0]
    hidden.name = HIDDEN_STATES
    graph.outputs.append(hidden)


def _head(graph: ir.Graph, name: str) -> ir.Node:
    return next(node for node in graph if node.name == name)


def _feed(graph: ir.Graph, head: ir.Node, pick: ir.Node) -> None:
    hidden, picked = head.inputs[0], pick.outputs[0]
    picked.name, picked.type = PICKED, hidden.type
    graph.insert_before(head, pick)
    head.replace_input_with(0, picked)


def _add(graph: ir.Graph, before: ir.Node, operator: str, values: list[ir.Value], **attributes: int) -> ir.Value:
    node = ir.node(operator, values, attributes=attributes, name=f"{PICKED}/{operator}")
    node.outputs[0].name = node.name
    graph.insert_before(before, node)
    return node.outputs[0]


def _numbers(graph: ir.Graph, number: int) -> ir.Value:
    """An initializer ``int64 [1]``."""
    value = ir.Value(name=f"{PICKED}/{number}", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    value.const_value = ir.tensor([number], dtype=ir.DataType.INT64, name=value.name)
    graph.register_initializer(value)
    return value
