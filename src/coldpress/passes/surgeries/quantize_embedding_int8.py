"""Store the token embedding in 8 bits, as GatherBlockQuantized reads it: a quarter of its bytes, half of float16's.

It is the largest table that a Gather reads rows of. Blocks of 32 weights along a row share a scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldpress.graphs.edits import add_initializer, contrib_node, drop_unread, take_place
from coldpress.graphs.queries import CONTRIB, constant, nodes_of
from coldpress.models.onnx_graphs import array_of
from coldpress.parts import Closeness
from coldpress.parts.surgery import Surgery
from coldpress.quant.grid import Codes, Grid
from coldpress.quant.rtn import rtn

if TYPE_CHECKING:
    import onnx_ir as ir

_BLOCK = 32
_ROWS = 4096  # rounded at a time


@dataclass(frozen=True)
class QuantizeEmbeddingInt8(Surgery):
    """Store the token embedding in 8 bits."""

    closeness = Closeness(0.1, "8 bits round the embedding by 0.6%")

    def operate(self, model: ir.Model) -> int:
        found = [node for node in nodes_of(model, "Gather") if node.graph is model.graph and _is_table(node)]
        if not found:
            return 0
        table = max((node.inputs[0] for node in found), key=lambda value: value.const_value.size)
        lookups = [node for node in found if node.inputs[0] is table]
        codes, scales = _quantized(model.graph, table)
        model.opset_imports.setdefault(CONTRIB, 1)
        for node in lookups:
            facts = {"bits": 8, "block_size": _BLOCK, "gather_axis": 0, "quantize_axis": 1}
            inputs = [codes, node.inputs[1], scales]
            take_place(node, contrib_node("GatherBlockQuantized", inputs, facts, node.name))
        drop_unread(model.graph, lookups)
        return len(lookups)


def _quantized(graph: ir.Graph, table: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Initializers with the codes ``[rows, columns]``, which are computed when they are written, and the scales."""
    import onnx_ir as ir

    tensor = table.const_value
    assert tensor is not None
    rows, columns = (int(size) for size in tensor.shape)
    name = f"{table.name}.codes"

    def codes() -> ir.Tensor:
        parts = [part.codes.reshape(-1, columns) for part in _rounded(tensor)]
        return ir.Tensor(np.concatenate(parts), name=name)

    lazy = ir.LazyTensor(codes, dtype=ir.DataType.UINT8, shape=ir.Shape([rows, columns]), name=name)
    scales = np.concatenate([part.scales for part in _rounded(tensor)])
    stored = ir.Tensor(scales.astype(tensor.dtype.numpy()), name=f"{table.name}.scales")
    return add_initializer(graph, lazy), add_initializer(graph, stored)


def _rounded(tensor: ir.TensorProtocol) -> Iterator[Codes]:
    """The codes and scales of some rows at a time."""
    is_full = tensor.dtype.name == "FLOAT"
    grid = Grid(8, _BLOCK, symmetric=True, scale_dtype="float32" if is_full else tensor.dtype.name.lower())
    rows = array_of(tensor)
    for start in range(0, len(rows), _ROWS):
        yield rtn(rows[start : start + _ROWS].astype(np.float32), grid)


def _is_table(node: ir.Node) -> bool:
    tensor = constant(node.inputs[0])
    is_float = tensor is not None and tensor.dtype.name in ("FLOAT", "FLOAT16", "BFLOAT16")
    return (
        is_float and len(tensor.shape) == 2 and not tensor.shape[1] % _BLOCK and not node.attributes.get_int("axis", 0)
    )
