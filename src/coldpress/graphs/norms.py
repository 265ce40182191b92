"""Norms that an exporter spelled out in single operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from coldpress.graphs.edits import add_constant, give_instead, insert_before
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


@dataclass(frozen=True)
class LayerNorm:
    """``(values - mean) / sqrt(variance + epsilon) * scale + bias`` over the last axis, which the node ``last``
    gives; ``quotient``: the node that divides by the root."""

    last: ir.Node
    quotient: ir.Node
    values: ir.Value
    epsilon: float
    scale: ir.Value
    bias: ir.Value


def spelled_out_layer_norms(model: ir.Model) -> Iterator[LayerNorm]:
    """Layer norms in single operators, with their scale and bias."""
    for last in nodes_of(model, "Add"):
        for place in (0, 1):
            product, bias = maker(last.inputs[place], "Mul"), last.inputs[1 - place]
            found = _scaled_norm(product) if product is not None and _is_row(bias) else None
            if found is not None:
                scale, quotient, epsilon = found
                assert bias is not None
                yield LayerNorm(last, quotient, quotient.inputs[0].producer().inputs[0], epsilon, scale, bias)
                break


def _scaled_norm(product: ir.Node) -> tuple[ir.Value, ir.Node, float] | None:
    """The scale, the quotient and the epsilon of a norm that a product scales."""
    for place in (0, 1):
        quotient, scale = maker(product.inputs[place], "Div"), product.inputs[1 - place]
        if quotient is None or not _is_row(scale):
            continue
        centred, root = maker(quotient.inputs[0], "Sub"), maker(quotient.inputs[1], "Sqrt")
        if centred is None or root is None or not _is_mean(centred.inputs[1], centred.inputs[0]):
            continue
        epsilon = _epsilon_beside_variance(root, centred.outputs[0])
        if epsilon is not None and scale is not None and centred.inputs[0] is not None:
            return scale, quotient, epsilon
    return None


def _epsilon_beside_variance(root: ir.Node, centred: ir.Value) -> float | None:
    """The epsilon, where the root is that of the mean of the squares of ``centred`` and it."""
    total = maker(root.inputs[0], "Add")
    if total is None:
        return None
    for place in (0, 1):
        mean, number = maker(total.inputs[place], "ReduceMean"), constant(total.inputs[1 - place])
        square = maker(mean.inputs[0], "Pow", "Mul") if mean is not None and sum_over_last(mean) else None
        if square is None or number is None or number.size != 1 or square.inputs[0] is not centred:
            continue
        if is_power(square, 2) if square.op_type == "Pow" else square.inputs[1] is centred:
            return float(array_of(number).reshape(-1)[0])
    return None


def _is_mean(value: ir.Value | None, of: ir.Value | None) -> bool:
    node = maker(value, "ReduceMean")
    return node is not None and node.inputs[0] is of and sum_over_last(node)


def _is_row(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return tensor is not None and len(tensor.shape) == 1


def write_layer_norm(norm: LayerNorm) -> None:
    """Write a layer norm as LayerNormalization."""
    inputs = [norm.values, norm.scale, norm.bias]
    give_instead(norm.last, insert_before(norm.last, "LayerNormalization", inputs, axis=-1, epsilon=norm.epsilon))
