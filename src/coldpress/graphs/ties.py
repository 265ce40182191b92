"""Token embeddings and heads that hold the same numbers twice, one of them turned over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from coldpress.graphs.edits import drop_unread_value, insert_before
from coldpress.graphs.queries import constant, nodes_of
from coldpress.models.onnx_graphs import array_of

_ROWS = 4096  # compared at a time


def stored_twice(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Products whose weight is the table of a Gather turned over, with that table."""
    tables = [node.inputs[0] for node in nodes_of(model, "Gather") if _is_table(node.inputs[0])]
    for product in nodes_of(model, "MatMul"):
        weight = product.inputs[1]
        table = next((one for one in dict.fromkeys(tables) if _is_turned_over(weight, one)), None)
        if table is not None and product.graph is model.graph:
            yield product, table


def tie(product: ir.Node, table: ir.Value) -> None:
    """Let a product read a table through a Transpose, which runtimes fold when they load the graph."""
    weight, graph = product.inputs[1], product.graph
    assert weight is not None and isinstance(graph, ir.Graph)
    product.replace_input_with(1, insert_before(product, "Transpose", [table], "tied", perm=[1, 0]))
    drop_unread_value(graph, weight)


def _is_table(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return tensor is not None and len(tensor.shape) == 2


def _is_turned_over(weight: ir.Value | None, table: ir.Value) -> bool:
    """Whether a constant matrix ``[H, V]`` has the numbers of a table ``[V, H]``."""
    tensor, other = constant(weight), constant(table)
    if tensor is None or tensor.dtype != other.dtype or list(tensor.shape) != list(other.shape)[::-1]:
        return False
    columns, rows = array_of(tensor), array_of(other)
    starts = range(0, len(rows), _ROWS)
    return all(np.array_equal(columns[:, start : start + _ROWS].T, rows[start : start + _ROWS]) for start in starts)


def share_bytes(model: ir.Model) -> int:
    """Let codes of a quantized embedding and head that are equal lie at one place of the file; returns how many
    tensors do now."""
    nodes = list(model.graph)
    lookups = [node for node in nodes if node.op_type == "GatherBlockQuantized"]
    changed = 0
    for product in (node for node in nodes if node.op_type == "MatMulNBits"):
        for lookup in lookups:
            pairs = list(zip((lookup.inputs[0], *lookup.inputs[2:4]), product.inputs[1:4], strict=False))
            if all(_are_equal(constant(one), constant(other)) for one, other in pairs):
                changed += sum(_share(one, other) for one, other in pairs)
    return changed


def _are_equal(one: Any, other: Any) -> bool:
    if one is None or other is None or one.dtype != other.dtype or one.nbytes != other.nbytes:
        return one is other
    return bool(np.array_equal(array_of(one).reshape(-1), array_of(other).reshape(-1)))


def _share(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Let a tensor lie where an equal one does; whether it did not before, and both are in a file."""
    kept, tensor = constant(one), constant(other)
    if one is other or not isinstance(kept, ir.ExternalTensor) or not isinstance(tensor, ir.ExternalTensor):
        return False
    if (kept.path, kept.offset) == (tensor.path, tensor.offset):
        return False
    assert other is not None
    other.const_value = ir.ExternalTensor(
        kept.location, kept.offset, kept.length, tensor.dtype,
        shape=tensor.shape, name=str(other.name), base_dir=kept.base_dir,
    )  # fmt: skip
    return True
