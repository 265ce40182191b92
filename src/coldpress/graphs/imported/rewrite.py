"""Rewriting a graph that others wrote: MatMul and Gemm to MatMulNBits, Gather to GatherBlockQuantized.

The opset, the names of nodes and outputs, and everything that is not a chosen weight stay. All tensors but small ones
go to one data file beside the graph. The operators are those of
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from coldpress.graphs.encode import CONTRIB, stored
from coldpress.graphs.imported.spans import Spans
from coldpress.graphs.imported.weights import Weight
from coldpress.graphs.layout import Layout, Place, Quantized
from coldpress.models.checkpoint import Span

_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
#: tensors up to this size stay inside the graph
_INLINE_BYTES = 1024


class Rewriter:
    """Puts quantized weights into ``model`` in place; ``layout`` says where their bytes will lie."""

    def __init__(self, model: ir.Model, layout: Layout, accuracy_level: int):
        self.graph, self.layout = model.graph, layout
        self._accuracy_level = accuracy_level
        self._file = Path(layout.data).name
        self._imports = model.opset_imports

    def replace(self, weight: Weight, entry: Quantized) -> None:
        """Let every node that reads ``weight`` read the codes of ``entry``, and drop the floats."""
        self._imports.setdefault(CONTRIB, 1)
        for product in weight.products:
            self._product(product, entry)
        for lookup in weight.lookups:
            self._lookup(lookup, entry, suffix=".lookup" if weight.products else "")
        for node in weight.obsolete:
            self._remove_unread(node)
        if weight.value.is_initializer() and not weight.value.uses():
            del self.graph.initializers[weight.name]
        elif (source := weight.value.producer()) is not None:
            self._remove_unread(source)

    def _product(self, product: ir.Node, entry: Quantized) -> None:
        bias = product.inputs[2] if len(product.inputs) > 2 else None
        is_vector = bias is not None and bias.shape is not None and list(bias.shape) == [entry.rows]
        inputs = [product.inputs[0], *self._values(entry, [entry.rows, entry.blocks, -1])]
        if is_vector:
            inputs += [None] * (5 - len(inputs)) + [bias]
        attributes = {
            "K": entry.columns,
            "N": entry.rows,
            "bits": entry.encoding.bits,
            "block_size": entry.encoding.block_size,
            "accuracy_level": self._accuracy_level,
        }
        node = ir.node("MatMulNBits", inputs, attributes=attributes, domain=CONTRIB, name=product.name)
        if bias is None or is_vector:
            self._take_place(product, node)
            return
        node.outputs[0].name = f"{product.outputs[0].name}.product"
        node.outputs[0].type = product.outputs[0].type
        self.graph.insert_before(product, node)
        self._take_place(product, ir.node("Add", [node.outputs[0], bias], name=f"{product.name}.bias"))

    def _lookup(self, lookup: ir.Node, entry: Quantized, suffix: str) -> None:
        codes, *rest = self._values(entry, [entry.rows, -1], suffix)
        attributes = {
            "bits": entry.encoding.bits,
            "block_size": entry.encoding.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        inputs = [codes, lookup.inputs[1], *rest]
        node = ir.node("GatherBlockQuantized", inputs, attributes=attributes, domain=CONTRIB, name=lookup.name)
        self._take_place(lookup, node)

    def _values(self, entry: Quantized, shape: list[int], suffix: str = "") -> list[ir.Value]:
        """The initializers of codes, scales and zero points; ``shape`` is that of the codes, -1 what is left."""
        left = entry.codes.bytes
        for size in shape[:-1]:
            left //= size
        values = [self._stored(f"{entry.name}.codes{suffix}", entry.codes, [*shape[:-1], left], ir.DataType.UINT8)]
        scales = [entry.rows, entry.blocks]
        values.append(self._stored(f"{entry.name}.scales", entry.scales, scales, _TYPES[entry.scale_dtype]))
        if (place := entry.zero_points) is not None:
            zeros = [entry.rows, place.bytes // entry.rows]
            values.append(self._stored(f"{entry.name}.zero_points", place, zeros, ir.DataType.UINT8))
        return values

    def _stored(self, name: str, place: Place, shape: list[int], dtype: ir.DataType) -> ir.Value:
        known = self.graph.initializers.get(name)
        return known if known is not None else stored(self.graph, name, place, shape, dtype, self._file)

    def _take_place(self, old: ir.Node, new: ir.Node) -> None:
        output, made = old.outputs[0], new.outputs[0]
        made.shape, made.type = output.shape, output.type
        self.graph.insert_before(old, new)
        ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
        made.name, output.name = output.name, None
        self.graph.remove(old, safe=True)

    def _remove_unread(self, node: ir.Node) -> None:
        if node.graph is not None and not any(value.uses() or value.is_graph_output() for value in node.outputs):
            self.graph.remove(node, safe=True)


def place_rest(model: ir.Model, layout: Layout, spans: Spans) -> list[tuple[Span, Place]]:
    """Give every other large tensor a place in the data file; returns which bytes go where.

    Tensors that share their bytes still do.
    """
    file = Path(layout.data).name
    own = {f"{entry.name}{part}" for entry in layout.quantized for part in _PARTS}
    copies: dict[Span, Place] = {}
    for value in _initializers(model):
        tensor = value.const_value
        if value.name in own or tensor.dtype == ir.DataType.STRING:
            continue
        if not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= _INLINE_BYTES:
            continue
        span = spans.bytes_of("", tensor)
        if span not in copies:
            copies[span] = layout.reserve(tensor.nbytes)
        place = copies[span]
        value.const_value = ir.ExternalTensor(
            file, offset=place.offset, length=place.bytes, dtype=tensor.dtype, shape=tensor.shape, name=value.name
        )
    return list(copies.items())


_PARTS = (".codes", ".codes.lookup", ".scales", ".zero_points")


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (value for value in graph.initializers.values() if value.const_value is not None)
