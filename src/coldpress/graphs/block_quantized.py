"""Writing ``MatMulNBits`` and ``GatherBlockQuantized`` into a graph, captured or imported.

They are contrib operators of ONNX Runtime (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
Their codes, scales and zero points are initializers whose bytes lie where a layout says. One weight may be read by
products and lookups, which then are initializers of two shapes over the same bytes.

Scales are stored in the type that the layout says. Where that is narrower than what the operator computes in, a cast
stands between: ONNX Runtime folds a cast of a constant when it loads the graph, before its kernels pack their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from coldpress.graphs.edits import add_constant, add_initializer
from coldpress.graphs.layout import Layout, Place, Quantized
from coldpress.graphs.queries import CONTRIB, readers

TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass
class Writer:
    """Writes nodes that read the weights of ``layout`` into ``model``; ``accuracy_level`` is what products get."""

    model: ir.Model
    layout: Layout
    accuracy_level: int = 0

    def product(
        self, values: ir.Value, entry: Quantized, dtype: ir.DataType, name: str | None, bias: ir.Value | None = None
    ) -> ir.Node:
        """A product of ``values [..., columns]`` with a weight, in ``dtype``, plus a bias ``[rows]``; it is not in the
        graph yet."""
        codes, *rest = self._weight(entry, [entry.rows, entry.blocks, entry.encoding.block_size], "", dtype)
        inputs = [values, codes, *rest]
        if bias is not None:
            inputs += [*[None] * (5 - len(inputs)), bias]
        attributes = {
            "K": entry.columns,
            "N": entry.rows,
            "bits": entry.encoding.bits,
            "block_size": entry.encoding.block_size,
            "accuracy_level": self.accuracy_level,
        }
        return ir.node("MatMulNBits", inputs, attributes=attributes, domain=CONTRIB, name=name)

    def lookup(self, gather: ir.Node, entry: Quantized, dtype: ir.DataType, name: str | None) -> ir.Node:
        """The node that gives what ``gather`` gave, from the codes of its table; it is not in the graph yet.

        Where the last block of a row is padded, that is a Slice, which cuts the padding off.
        """
        columns = entry.blocks * entry.encoding.block_size
        codes, *rest = self._weight(entry, [entry.rows, columns], ".lookup", dtype)
        attributes = {
            "bits": entry.encoding.bits,
            "block_size": entry.encoding.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        inputs = [codes, gather.inputs[1], *rest]
        node = ir.node("GatherBlockQuantized", inputs, attributes=attributes, domain=CONTRIB, name=name)
        return node if columns == entry.columns else self._cut(gather, node, entry.columns)

    def _cut(self, gather: ir.Node, padded: ir.Node, columns: int) -> ir.Node:
        graph = self.model.graph
        padded.outputs[0].name, padded.outputs[0].type = f"{padded.name}.padded", gather.outputs[0].type
        graph.insert_before(gather, padded)
        limits = [
            add_constant(graph, f"{padded.name}.{name}", [number], ir.DataType.INT64)
            for name, number in (("start", 0), ("stop", columns), ("axis", -1))
        ]
        return ir.node("Slice", [padded.outputs[0], *limits], name=f"{padded.name}.cut")

    def _weight(self, entry: Quantized, shape: list[int], suffix: str, dtype: ir.DataType) -> list[ir.Value]:
        """The values of codes, scales and zero points; ``shape``: of the codes, one by one."""
        self.model.opset_imports.setdefault(CONTRIB, 1)
        *outer, last = shape
        packed = [*outer, last * entry.encoding.bits // 8]
        values = [self._stored(f"{entry.name}.codes{suffix}", entry.codes, packed, ir.DataType.UINT8)]
        values.append(self._scales(entry, dtype))
        if (place := entry.zero_points) is not None:
            zeros = [entry.rows, place.bytes // entry.rows]
            values.append(self._stored(f"{entry.name}.zero_points", place, zeros, ir.DataType.UINT8))
        return values

    def _scales(self, entry: Quantized, wanted: ir.DataType) -> ir.Value:
        kept, graph = TYPES[entry.scale_dtype], self.model.graph
        value = self._stored(f"{entry.name}.scales", entry.scales, [entry.rows, entry.blocks], kept)
        if kept == wanted:
            return value
        known = [node for node in readers(value) if node.op_type == "Cast"]
        cast = known[0] if known else ir.node("Cast", [value], {"to": wanted}, name=f"{entry.name}.scales.cast")
        if not known:
            cast.outputs[0].name, cast.outputs[0].type = cast.name, ir.TensorType(wanted)
            graph.insert_before(graph[0], cast)
        return cast.outputs[0]

    def _stored(self, name: str, place: Place, shape: list[int], dtype: ir.DataType) -> ir.Value:
        known = self.model.graph.initializers.get(name)
        return known if known is not None else stored(self.model.graph, name, place, shape, dtype, self.layout)


def stored(graph: ir.Graph, name: str, place: Place, shape: list[int], dtype: ir.DataType, layout: Layout) -> ir.Value:
    """An initializer whose bytes lie in the data file of a layout."""
    return add_initializer(graph, external(name, place, shape, dtype, layout))


def external(name: str, place: Place, shape: list[int], dtype: ir.DataType, layout: Layout) -> ir.ExternalTensor:
    """A tensor in the data file of a layout."""
    return ir.ExternalTensor(Path(layout.data).name, place.offset, place.bytes, dtype, shape=ir.Shape(shape), name=name)
