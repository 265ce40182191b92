"""Rewriting a captured graph so that its weights are quantized, and laying out its data file.

``MatMulNBits`` and ``GatherBlockQuantized`` are contrib operators of ONNX Runtime
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md). Weights keep their row layout, so a
fused product is the rows of its parts one above the other, and an embedding that is tied to the head
shares its bytes: two initializers, one place in the file.

Blocks run along a weight's inputs. A weight whose inputs are no multiple of the block size gets the largest smaller
block that divides them, so that nothing is padded; where none does, its last block is padded with zeros, which
``MatMulNBits`` never reads and which are cut off after ``GatherBlockQuantized``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from coldpress.graphs.kernels import Encoding, fitting_block
from coldpress.graphs.layout import Layout, Place, Quantized
from coldpress.graphs.linears import Embedding, Linear, find_embeddings, find_head, find_linears
from coldpress.graphs.prequantized import stored_encoding, stored_scale_dtype
from coldpress.models.checkpoint import Span
from coldpress.networks.routers import is_router

CONTRIB = "com.microsoft"
_ONNX_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_NAMES = {**{code: name for name, code in _ONNX_TYPES.items()}, ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}
_ROLES = ("linear", "head", "embedding")


@dataclass(frozen=True)
class Precision:
    """Which encoding each weight gets; None keeps it float.

    ``overrides`` are (glob over module names, encoding or None) pairs; the first that matches wins over
    the role's encoding. A layer has several names: the graph's, those of the parts it is fused of, those of the
    checkpoint, and ``lm_head`` for the one that gives the logits; a fused layer is one weight, so a glob that matches
    a part decides on all of it. ``accuracy_level`` 4 lets the CPU multiply in int8, 0 leaves activations float.
    ``scale_dtype``: what new scales are stored as in a graph of float32, which casts them when it is loaded.
    """

    dtype: str
    linear: Encoding | None = None
    head: Encoding | None = None
    embedding: Encoding | None = None
    accuracy_level: int = 0
    scale_dtype: str = "float32"
    overrides: list[tuple[str, Encoding | None]] = field(default_factory=list)

    def of(self, role: str, names: list[str], columns: int, own: Encoding | None = None) -> Encoding | None:
        """The encoding of a weight with so many inputs, its block size one that fits; the first name is the graph's.

        A weight that the checkpoint has as codes keeps its ``own`` encoding, unless an override makes it float.
        """
        if is_router(names[0]):
            return None
        matching = (code for pattern, code in self.overrides for name in names if fnmatch.fnmatchcase(name, pattern))
        encoding: Encoding | None = next(matching, own or getattr(self, role))
        if own is not None:
            return own if encoding else None
        return replace(encoding, block_size=fitting_block(columns, encoding.block_size)) if encoding else None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Precision:
        overrides = [(pattern, Encoding(**code) if code else None) for pattern, code in data["overrides"]]
        linear, head, embedding = (Encoding(**data[role]) if data[role] else None for role in _ROLES)
        return cls(data["dtype"], linear, head, embedding, data["accuracy_level"], data["scale_dtype"], overrides)


@dataclass
class _Rewriter:
    graph: ir.Graph
    sources: Mapping[str, Span]
    precision: Precision
    layout: Layout

    def linear(self, linear: Linear, role: str) -> None:
        names = _names(self.sources, linear.module, linear.weights, role)
        encoding = self.precision.of(role, names, linear.columns, stored_encoding(self._spans(linear.weights)))
        if encoding is None:
            self._transpose(linear)
            return
        entry = self._quantize(linear.module, role, linear.weights, encoding)
        product = linear.matmul
        adding, bias = self._bias_after(linear)
        inputs = [product.inputs[0], *self._weight_values(entry, [entry.rows, entry.blocks, -1])]
        if bias is not None:
            inputs += [None] * (5 - len(inputs)) + [bias]
        node = ir.node(
            "MatMulNBits",
            inputs,
            attributes={
                "K": linear.columns,
                "N": linear.rows,
                "bits": encoding.bits,
                "block_size": encoding.block_size,
                "accuracy_level": self.precision.accuracy_level,
            },
            domain=CONTRIB,
            name="lm_head" if role == "head" else linear.module,
        )
        self._replace(adding[0] if adding else product, node, remove=[*adding, product, *linear.obsolete])

    def _transpose(self, linear: Linear) -> None:
        """Store a float weight as ``[in, out]``: a runtime would otherwise keep a transposed copy in memory."""
        linear.matmul.name = linear.module
        readers = {id(node) for weight in linear.weights for node, _ in weight.uses()}
        if readers - {id(node) for node in linear.obsolete}:
            return  # tied to an embedding, which reads it as it is
        shape, dtype = [linear.columns, linear.rows], linear.weights[0].dtype
        entry = self.layout.add_plain(
            f"{linear.module}.weight_t", self._spans(linear.weights), shape, _NAMES[dtype], True
        )
        weight = stored(self.graph, entry.name, entry.place, shape, dtype, self.layout.data)
        linear.matmul.replace_input_with(1, weight)
        self._remove_unread(linear.obsolete)

    def embedding(self, embedding: Embedding) -> None:
        weight, gather = embedding.weight, embedding.gather
        names = _names(self.sources, embedding.module, [weight], "embedding")
        span = self.sources[weight.name]
        encoding = self.precision.of("embedding", names, int(weight.shape[1]), stored_encoding([span]))
        if encoding is None or len(list(weight.uses())) > 1:  # a head that stays float reads it, too
            return
        shared = [entry for entry in self.layout.quantized if entry.sources == [span]]
        entry = shared[0] if shared else self._quantize(embedding.module, "embedding", [weight], encoding)
        codes, *rest = self._weight_values(entry, [entry.rows, -1], suffix=".lookup")
        node = ir.node(
            "GatherBlockQuantized",
            [codes, gather.inputs[1], *rest],
            attributes={
                "bits": entry.encoding.bits,
                "block_size": entry.encoding.block_size,
                "gather_axis": 0,
                "quantize_axis": 1,
            },
            domain=CONTRIB,
            name=embedding.module,
        )
        padded = entry.columns % entry.encoding.block_size != 0
        self._replace(gather, self._cut(gather, node, entry.columns) if padded else node, remove=[gather])

    def _cut(self, gather: ir.Node, padded: ir.Node, columns: int) -> ir.Node:
        """A node that keeps the first ``columns`` of a lookup, without the padding of its last block."""
        padded.outputs[0].name, padded.outputs[0].type = f"{padded.name}.padded", gather.outputs[0].type
        self.graph.insert_before(gather, padded)
        limits = []
        for name, number in (("start", 0), ("stop", columns), ("axis", -1)):
            limit = ir.Value(name=f"{padded.name}.{name}", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
            limit.const_value = ir.tensor([number], dtype=ir.DataType.INT64, name=limit.name)
            self.graph.register_initializer(limit)
            limits.append(limit)
        return ir.node("Slice", [padded.outputs[0], *limits], name=f"{padded.name}.cut")

    def _quantize(self, module: str, role: str, weights: list[ir.Value], encoding: Encoding) -> Quantized:
        spans = self._spans(weights)
        return self.layout.add_quantized(f"{module}.weight", role, spans, encoding, self._scale_dtype(spans))

    def _scale_dtype(self, spans: list[Span]) -> str:
        """Kernels want scales in the type of the graph; one of float32 stores them smaller, in the type they came
        in."""
        if self.precision.dtype != "float32":
            return self.precision.dtype
        return stored_scale_dtype(spans) or self.precision.scale_dtype

    def _spans(self, weights: list[ir.Value]) -> list[Span]:
        return [self.sources[str(weight.name)] for weight in weights]

    def _weight_values(self, entry: Quantized, shape: list[int], suffix: str = "") -> list[ir.Value]:
        """The initializers of codes, scales and zero points; ``shape`` is that of the codes, -1 what is left."""
        left = entry.codes.bytes
        for size in shape[:-1]:
            left //= size
        zero_columns = -(-entry.blocks * entry.encoding.bits // 8)
        values = [self._stored(f"{entry.name}.codes{suffix}", entry.codes, [*shape[:-1], left], ir.DataType.UINT8)]
        values.append(self._scales(entry))
        if entry.zero_points is not None:
            place = entry.zero_points
            name = f"{entry.name}.zero_points"
            values.append(self._stored(name, place, [entry.rows, zero_columns], ir.DataType.UINT8))
        return values

    def _scales(self, entry: Quantized) -> ir.Value:
        """The scales in the type of the graph: where they are stored smaller, cast from that.

        ONNX Runtime folds a cast of a constant when it loads the graph, before its kernels pack their weights.
        """
        kept, wanted = _ONNX_TYPES[entry.scale_dtype], _ONNX_TYPES[self.precision.dtype]
        value = self._stored(f"{entry.name}.scales", entry.scales, [entry.rows, entry.blocks], kept)
        if kept == wanted:
            return value
        known = [node for node, _ in value.uses() if node.op_type == "Cast"]
        cast = known[0] if known else ir.node("Cast", [value], {"to": wanted}, name=f"{entry.name}.scales.cast")
        if not known:
            cast.outputs[0].name, cast.outputs[0].type = cast.name, ir.TensorType(wanted)
            self.graph.insert_before(self.graph[0], cast)
        return cast.outputs[0]

    def _stored(self, name: str, place: Place, shape: list[int], dtype: ir.DataType) -> ir.Value:
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        return stored(self.graph, name, place, shape, dtype, self.layout.data)

    def _bias_after(self, linear: Linear) -> tuple[list[ir.Node], ir.Value | None]:
        """The nodes that add a bias of the checkpoint right after a product, the Add first, and that bias.

        The biases of a fused product come from a Concat; they are stored as one tensor.
        """
        uses = list(linear.matmul.outputs[0].uses())
        if len(uses) != 1 or uses[0][0].op_type != "Add" or linear.matmul.outputs[0].is_graph_output():
            return [], None
        add, side = uses[0]
        bias = add.inputs[1 - side]
        stack = bias.producer() if bias is not None else None
        parts = list(stack.inputs) if stack is not None and stack.op_type == "Concat" else [bias]
        if not all(part is not None and part.name in self.sources and len(part.shape or ()) == 1 for part in parts):
            return [], None
        if sum(int(part.shape[0]) for part in parts) != linear.rows:
            return [], None
        if stack is None:
            return [add], bias
        return [add, stack], self._stacked(f"{linear.module}.bias", parts, linear.rows)

    def _stacked(self, name: str, parts: list[ir.Value], rows: int) -> ir.Value:
        dtype = parts[0].dtype
        entry = self.layout.add_plain(name, [self.sources[part.name] for part in parts], [rows], _NAMES[dtype])
        return self._stored(name, entry.place, [rows], dtype)

    def _replace(self, last: ir.Node, node: ir.Node, remove: list[ir.Node]) -> None:
        output = last.outputs[0]
        node.outputs[0].shape, node.outputs[0].type = output.shape, output.type
        self.graph.insert_before(last, node)
        ir.convenience.replace_all_uses_with(output, node.outputs[0], replace_graph_outputs=True)
        node.outputs[0].name, output.name = output.name, None
        self._remove_unread(remove)

    def _remove_unread(self, nodes: list[ir.Node]) -> None:
        for node in nodes:
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                self.graph.remove(node, safe=True)


def encode(
    model: ir.Model, sources: Mapping[str, Span], precision: Precision, graph_file: str, vocabulary: int
) -> Layout:
    """Rewrite ``model`` in place and give every weight its place in the data file."""
    graph, layout = model.graph, Layout(graph_file)
    _merge_tied(graph, sources)
    rewriter = _Rewriter(graph, sources, precision, layout)
    linears = list(find_linears(graph, sources))
    head = find_head(graph, linears)
    embeddings = list(find_embeddings(graph, sources, vocabulary))
    for linear in linears:
        rewriter.linear(linear, "head" if linear is head else "linear")
    for embedding in embeddings:
        rewriter.embedding(embedding)
    if layout.quantized:
        model.opset_imports.setdefault(CONTRIB, 1)
    _place_floats(graph, sources, layout)
    return layout


def unmatched_overrides(
    models: Iterable[ir.Model], sources: Mapping[str, Span], precision: Precision, vocabulary: int
) -> list[str]:
    """The globs of ``precision`` that no layer of the captured graphs has a name for; before they are rewritten."""
    names = {"lm_head"}
    for model in models:
        for linear in find_linears(model.graph, sources):
            names.update(_names(sources, linear.module, linear.weights, "linear"))
        for embedding in find_embeddings(model.graph, sources, vocabulary):
            names.update(_names(sources, embedding.module, [embedding.weight], "embedding"))
    return [pattern for pattern, _ in precision.overrides if not fnmatch.filter(names, pattern)]


def _names(sources: Mapping[str, Span], module: str, weights: list[ir.Value], role: str) -> list[str]:
    """Every name that a user may know a layer by, the graph's first."""
    tensors = [str(weight.name) for weight in weights] + [sources[str(weight.name)].name for weight in weights]
    return [module, *(name.removesuffix(".weight") for name in tensors), *(["lm_head"] if role == "head" else [])]


def _merge_tied(graph: ir.Graph, sources: Mapping[str, Span]) -> None:
    """Let weights that are the same tensor of the checkpoint be one initializer, the first of them."""
    kept: dict[Span, ir.Value] = {}
    for name, value in graph.initializers.items():
        if name in sources and kept.setdefault(sources[name], value) is not value:
            ir.convenience.replace_all_uses_with(value, kept[sources[name]])


def stored(graph: ir.Graph, name: str, place: Place, shape: list[int], dtype: ir.DataType, file: str) -> ir.Value:
    """An initializer whose bytes lie in the data file."""
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    _point_at(value, place, dtype, file)
    graph.register_initializer(value)
    return value


def _point_at(value: ir.Value, place: Place, dtype: ir.DataType, file: str) -> None:
    value.const_value = ir.ExternalTensor(
        file, offset=place.offset, length=place.bytes, dtype=dtype, shape=value.shape, name=value.name
    )


def _place_floats(graph: ir.Graph, sources: Mapping[str, Span], layout: Layout) -> None:
    """Give the weights that stay float their places; drop initializers that nobody reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
        elif value.const_value is None:
            shape = [int(size) for size in value.shape]
            entry = layout.add_plain(name, [sources[name]], shape, _NAMES[value.dtype])
            _point_at(value, entry.place, value.dtype, layout.data)
