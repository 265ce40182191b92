"""Rewriting a graph that others wrote: MatMul and Gemm to MatMulNBits, Gather to GatherBlockQuantized.

The opset, the names of nodes and outputs, and everything that is not a chosen weight stay. All tensors but small ones
go to one data file beside the graph.
"""

from __future__ import annotations

import onnx_ir as ir

from coldpress.graphs.block_quantized import Writer, external
from coldpress.graphs.edits import drop_unread, take_place
from coldpress.graphs.imported.spans import Spans
from coldpress.graphs.imported.weights import Weight
from coldpress.graphs.layout import Layout, Place, Quantized
from coldpress.models.checkpoint import Span

#: tensors up to this size stay inside the graph
_INLINE_BYTES = 1024


def replace_weight(writer: Writer, weight: Weight, entry: Quantized) -> None:
    """Let every node that reads ``weight`` read the codes of ``entry``, and drop the floats."""
    graph, dtype = writer.model.graph, weight.tensor.dtype
    for product in weight.products:
        _replace_product(writer, product, entry, dtype)
    for lookup in weight.lookups:
        take_place(lookup, writer.lookup(lookup, entry, dtype, lookup.name))
    drop_unread(graph, [*weight.products, *weight.lookups])


def _replace_product(writer: Writer, product: ir.Node, entry: Quantized, dtype: ir.DataType) -> None:
    bias = product.inputs[2] if len(product.inputs) > 2 else None
    is_vector = bias is not None and bias.shape is not None and list(bias.shape) == [entry.rows]
    assert product.inputs[0] is not None
    node = writer.product(product.inputs[0], entry, dtype, product.name, bias if is_vector else None)
    if bias is None or is_vector:
        take_place(product, node)
        return
    node.outputs[0].name = f"{product.outputs[0].name}.product"
    node.outputs[0].type = product.outputs[0].type
    writer.model.graph.insert_before(product, node)
    take_place(product, ir.node("Add", [node.outputs[0], bias], name=f"{product.name}.bias"))


def place_rest(model: ir.Model, layout: Layout, spans: Spans) -> list[tuple[Span, Place]]:
    """Give every other large tensor a place in the data file; returns which bytes go where.

    Tensors that share their bytes still do.
    """
    own = {f"{entry.name}{part}" for entry in layout.quantized for part in _PARTS}
    copies: dict[Span, Place] = {}
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.name in own or tensor.dtype == ir.DataType.STRING:
            continue
        if not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= _INLINE_BYTES:
            continue
        span = spans.bytes_of("", tensor)
        if span not in copies:
            copies[span] = layout.reserve(tensor.nbytes)
        shape = [int(size) for size in tensor.shape]
        value.const_value = external(str(value.name), copies[span], shape, tensor.dtype, layout)
    return list(copies.items())


_PARTS = (".codes", ".codes.lookup", ".scales", ".zero_points")
