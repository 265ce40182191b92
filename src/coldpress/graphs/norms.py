"""Norms that an exporter spelled out in single operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coldpress.graphs.edits import add_constant, insert_before
from coldpress.graphs.queries import constant, maker, nodes_of
from coldpress.models.onnx_graphs import array_of


@dataclass(frozen=True)
class RmsNorm:
    """``values / sqrt(mean(values^2) + epsilon)`` over the last axis, of ``columns``, which the node ``last`` gives."""

    last: ir.Node
    values: ir.Value
    columns: int


def spelled_out_rms_norms(model: ir.Model) -> Iterator[RmsNorm]:
    """Norms of the root mean square, without their weight: a quotient, or a product with one over the root."""
    for node in nodes_of(model, "Div", "Mul"):
        for place in (0, 1) if node.op_type == "Mul" else (0,):
            values, factor = node.inputs[place], node.inputs[1 - place]
            root = _under_fraction(factor) if node.op_type == "Mul" else maker(factor, "Sqrt", "Pow")
            if root is None or values is None or not _is_root_of_mean_square(root, values):
                continue
            if values.shape is not None and values.shape and isinstance(values.shape[-1], int):
                yield RmsNorm(node, values, values.shape[-1])
                break


def l2_norm(node: ir.Node, values: ir.Value, columns: int) -> ir.Value:
    """``values / |values| * sqrt(columns)`` over the last axis, in front of a node."""
    dtype = values.dtype or ir.DataType.FLOAT
    root = add_constant(node.graph, f"root.of.{columns}.{dtype.name.lower()}", columns**0.5, dtype)
    return insert_before(node, "Mul", [insert_before(node, "LpNormalization", [values], axis=-1, p=2), root], "norm")


def _under_fraction(value: ir.Value | None) -> ir.Node | None:
    """The node that gives ``b``, where a value is ``1 / b``."""
    one = maker(value, "Reciprocal", "Div")
    if one is None or (one.op_type == "Div" and not _is_number(one.inputs[0], 1)):
        return None
    return maker(one.inputs[-1], "Sqrt", "Pow")


def _is_root_of_mean_square(root: ir.Node, values: ir.Value) -> bool:
    if root.op_type == "Pow" and not is_power(root, 0.5):
        return False
    total = maker(root.inputs[0], "Add")
    means = [maker(value, "ReduceMean") for value in total.inputs] if total is not None else []
    mean = next((one for one in means if one is not None), None)
    if mean is None or not sum_over_last(mean):
        return False
    square = maker(mean.inputs[0], "Pow", "Mul")
    if square is None or square.inputs[0] is not values:
        return False
    return is_power(square, 2) if square.op_type == "Pow" else square.inputs[1] is values


def is_power(node: ir.Node, exponent: float) -> bool:
    """Whether a Pow has this constant exponent."""
    return _is_number(node.inputs[1], exponent)


def _is_number(value: ir.Value | None, number: float) -> bool:
    tensor = constant(value)
    return tensor is not None and tensor.size == 1 and float(array_of(tensor).reshape(-1)[0]) == np.float32(number)


def sum_over_last(node: ir.Node) -> bool:
    """Whether a node reduces the last axis alone, and keeps it."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    known = [int(axis) for axis in array_of(axes)] if axes is not None else list(node.attributes.get_ints("axes", []))
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else None
    return len(known) == 1 and known[0] in (-1, rank and rank - 1) and node.attributes.get_int("keepdims", 1) == 1
