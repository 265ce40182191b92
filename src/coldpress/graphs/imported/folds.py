"""Where the input of some weights can be divided by a scale for each column, at no cost: in the constants of a norm.

That is safe where a norm's scale (and bias) makes the input, and nothing but these weights reads it. The norm may be
one operator, or end in ``Mul(x, scale)`` or ``Add(Mul(x, scale), bias)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coldpress.graphs.edits import add_initializer, drop_unread_value
from coldpress.graphs.imported.weights import Weight
from coldpress.graphs.queries import constant, is_onnx, maker, only_reader, readers
from coldpress.models.onnx_graphs import array_of
from coldpress.quant.grid import Floats

#: norm -> its inputs that multiply or shift the result
_NORMS = {
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "RMSNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}


@dataclass
class Scaled:
    """A constant that multiplies or shifts what a node gives: its place among the node's inputs, and its values."""

    node: ir.Node
    place: int
    values: np.ndarray

    @property
    def value(self) -> ir.Value:
        return self.node.inputs[self.place]


@dataclass
class Fold:
    """``weights`` that alone read one tensor, and the constants behind it, the multiplying one first."""

    weights: list[Weight]
    constants: list[Scaled]

    def divide(self, graph: ir.Graph, scales: Floats) -> Floats:
        """Divide the constants by ``scales [K]``; returns the scales that they were divided by after rounding.

        The new constants lie inside the graph, and belong to these nodes alone.
        """
        rounded = [_divided(scaled.values, scales) for scaled in self.constants]
        for scaled, values in zip(self.constants, rounded, strict=True):
            self._replace(graph, scaled, values)
        before, after = (values.astype(np.float32).reshape(-1) for values in (self.constants[0].values, rounded[0]))
        applied: Floats = np.where(after != 0, before / np.where(after != 0, after, 1), scales)
        return applied

    def _replace(self, graph: ir.Graph, scaled: Scaled, values: np.ndarray) -> None:
        old = scaled.value
        new = add_initializer(graph, ir.tensor(values, name=f"{old.name}.scaled.{scaled.node.outputs[0].name}"))
        scaled.node.replace_input_with(scaled.place, new)
        drop_unread_value(graph, old)


def _divided(values: np.ndarray, scales: Floats) -> np.ndarray:
    return (values.astype(np.float32) / scales).astype(values.dtype)


def find_folds(weights: list[Weight]) -> list[Fold]:
    """The groups of weights whose shared input can be scaled."""
    by_input: dict[ir.Value, list[Weight]] = {}
    for weight in weights:
        if len(weight.products) == 1 and not weight.lookups:
            by_input.setdefault(weight.products[0].inputs[0], []).append(weight)
    found = []
    for value, own in by_input.items():
        nodes = {weight.products[0] for weight in own}
        if value.is_graph_output() or not nodes.issuperset(readers(value)):
            continue
        constants = [
            Scaled(node, place, array_of(constant(node.inputs[place])))
            for node, place in _constants_behind(value, own[0].columns)
        ]
        if constants:
            found.append(Fold(own, constants))
    return found


def _constants_behind(value: ir.Value, columns: int) -> list[tuple[ir.Node, int]]:
    """The places of the constants that scale ``value``, the multiplying one first; empty where there are none."""
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return []
    if node.op_type in _NORMS:
        given = [place for place in _NORMS[node.op_type] if place < len(node.inputs) and node.inputs[place] is not None]
        is_last_axis = node.attributes.get_int("axis", -1) in (-1, *_rank(value))
        fits = is_last_axis and all(_is_row(node.inputs[place], columns) for place in given)
        return [(node, place) for place in given] if fits and given else []
    if not is_onnx(node, "Mul", "Add"):
        return []
    place = next((place for place in (0, 1) if _is_row(node.inputs[place], columns)), None)
    if place is None:
        return []
    if node.op_type == "Mul":
        return [(node, place)]
    scaled = node.inputs[1 - place]
    if maker(scaled, "Mul") is None or only_reader(scaled) is not node:
        return []
    behind = _constants_behind(scaled, columns)
    return [*behind, (node, place)] if behind else []


def _rank(value: ir.Value) -> tuple[int, ...]:
    """The number of the last axis, where the graph tells it."""
    return () if value.shape is None else (len(value.shape) - 1,)


def _is_row(value: ir.Value | None, columns: int) -> bool:
    """Whether a constant has one number for each column."""
    tensor = constant(value)
    if tensor is None:
        return False
    shape = list(tensor.shape)
    return tensor.size == columns and shape[-1:] == [columns]
