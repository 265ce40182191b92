"""Rewriting a captured graph so that its weights are quantized, and laying out its data file.

Weights keep their row layout, so a fused product is the rows of its parts one above the other, and an embedding that is
tied to the head shares its bytes: two initializers, one place in the file.

Blocks run along a weight's inputs. A weight whose inputs are no multiple of the block size gets the largest smaller
block that divides them, so that nothing is padded; where none does, its last block is padded with zeros, which
``MatMulNBits`` never reads and which are cut off after ``GatherBlockQuantized``.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from coldpress.graphs.block_quantized import TYPES, Writer, external, stored
from coldpress.graphs.edits import drop_unread, take_place
from coldpress.graphs.kernels import Encoding, fitting_block
from coldpress.graphs.layout import Layout, Quantized
from coldpress.graphs.linears import Embedding, Linear, find_embeddings, find_head, find_linears
from coldpress.graphs.prequantized import stored_encoding, stored_scale_dtype
from coldpress.graphs.queries import is_read, maker, only_reader, readers
from coldpress.models.checkpoint import Span
from coldpress.networks.routers import is_router

_NAMES = {**{code: name for name, code in TYPES.items()}, ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}
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
    writer: Writer
    used: Counter[str] = field(default_factory=Counter)

    def _name(self, module: str) -> str:
        """The name of a node for a module: its own, with a number where layers of the network share it."""
        self.used[module] += 1
        return module if self.used[module] == 1 else f"{module}/{self.used[module]}"

    def linear(self, linear: Linear, role: str) -> None:
        names = _names(self.sources, linear.module, linear.weights, role)
        encoding = self.precision.of(role, names, linear.columns, stored_encoding(self._spans(linear.weights)))
        if encoding is None:
            self._transpose(linear)
            return
        entry = self._quantize(linear.module, role, linear.weights, encoding)
        product = linear.matmul
        adding, bias = self._bias_after(linear)
        name = self._name("lm_head" if role == "head" else linear.module)
        take_place(adding or product, self.writer.product(product.inputs[0], entry, self._dtype, name, bias))
        drop_unread(self.graph, [adding or product])

    def _transpose(self, linear: Linear) -> None:
        """Store a float weight as ``[in, out]``: a runtime would otherwise keep a transposed copy in memory."""
        linear.matmul.name = self._name(linear.module)
        used = {id(node) for weight in linear.weights for node in readers(weight)}
        if used - {id(node) for node in linear.obsolete}:
            return  # tied to an embedding, which reads it as it is
        shape, dtype = [linear.columns, linear.rows], linear.weights[0].dtype
        name = f"{linear.module}.weight_t"
        if name not in self.graph.initializers:  # else other layers of the network have this weight, too
            place = self.layout.add_plain(name, self._spans(linear.weights), shape, _NAMES[dtype], True).place
            stored(self.graph, name, place, shape, dtype, self.layout)
        linear.matmul.replace_input_with(1, self.graph.initializers[name])
        drop_unread(self.graph, linear.obsolete)

    def embedding(self, embedding: Embedding) -> None:
        weight, gather = embedding.weight, embedding.gather
        names = _names(self.sources, embedding.module, [weight], "embedding")
        span = self.sources[weight.name]
        encoding = self.precision.of("embedding", names, int(weight.shape[1]), stored_encoding([span]))
        if encoding is None or only_reader(weight) is not gather:  # a head that stays float reads it, too
            return
        shared = [entry for entry in self.layout.quantized if entry.sources == [span]]
        entry = shared[0] if shared else self._quantize(embedding.module, "embedding", [weight], encoding)
        take_place(gather, self.writer.lookup(gather, entry, self._dtype, self._name(embedding.module)))
        drop_unread(self.graph, [gather])

    @property
    def _dtype(self) -> ir.DataType:
        """What the graph computes in."""
        return TYPES[self.precision.dtype]

    def _quantize(self, module: str, role: str, weights: list[ir.Value], encoding: Encoding) -> Quantized:
        spans = self._spans(weights)
        for entry in self.layout.quantized:  # layers of the network may share a weight
            if entry.name == f"{module}.weight" and entry.sources == spans:
                return entry
        return self.layout.add_quantized(f"{module}.weight", role, spans, encoding, self._scale_dtype(spans))

    def _scale_dtype(self, spans: list[Span]) -> str:
        """Kernels want scales in the type of the graph; one of float32 stores them smaller, in the type they came
        in."""
        if self.precision.dtype != "float32":
            return self.precision.dtype
        return stored_scale_dtype(spans) or self.precision.scale_dtype

    def _spans(self, weights: list[ir.Value]) -> list[Span]:
        return [self.sources[str(weight.name)] for weight in weights]

    def _bias_after(self, linear: Linear) -> tuple[ir.Node | None, ir.Value | None]:
        """The Add of a bias of the checkpoint right after a product, and that bias.

        The biases of a fused product come from a Concat; they are stored as one tensor.
        """
        add = only_reader(linear.matmul.outputs[0])
        if add is None or add.op_type != "Add":
            return None, None
        bias = next((value for value in add.inputs if value is not linear.matmul.outputs[0]), None)
        stack = maker(bias, "Concat")
        parts: list[Any] = list(stack.inputs) if stack is not None else [bias]
        if not all(part is not None and part.name in self.sources and len(part.shape or ()) == 1 for part in parts):
            return None, None
        if sum(int(part.shape[0]) for part in parts) != linear.rows:
            return None, None
        return add, bias if stack is None else self._stacked(f"{linear.module}.bias", parts, linear.rows)

    def _stacked(self, name: str, parts: list[ir.Value], rows: int) -> ir.Value:
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        dtype = parts[0].dtype
        entry = self.layout.add_plain(name, [self.sources[part.name] for part in parts], [rows], _NAMES[dtype])
        return stored(self.graph, name, entry.place, [rows], dtype, self.layout)


def encode(
    model: ir.Model, sources: Mapping[str, Span], precision: Precision, graph_file: str, vocabulary: int
) -> Layout:
    """Rewrite ``model`` in place and give every weight its place in the data file."""
    graph, layout = model.graph, Layout(graph_file)
    _merge_tied(graph, sources)
    rewriter = _Rewriter(graph, sources, precision, layout, Writer(model, layout, precision.accuracy_level))
    linears = list(find_linears(graph, sources))
    head = find_head(graph, linears)
    embeddings = list(find_embeddings(graph, sources, vocabulary))
    for linear in linears:
        rewriter.linear(linear, "head" if linear is head else "linear")
    for embedding in embeddings:
        rewriter.embedding(embedding)
    _place_floats(graph, sources, layout)
    return layout


def unmatched_overrides(
    models: Iterable[ir.Model], sources: Mapping[str, Span], precision: Precision, vocabulary: int
) -> list[str]:
    """The globs of weights that stay float which no layer of the captured graphs has a name for; before these are
    rewritten."""
    names = {"lm_head"}
    for model in models:
        for linear in find_linears(model.graph, sources):
            names.update(_names(sources, linear.module, linear.weights, "linear"))
        for embedding in find_embeddings(model.graph, sources, vocabulary):
            names.update(_names(sources, embedding.module, [embedding.weight], "embedding"))
    floats = [pattern for pattern, encoding in precision.overrides if encoding is None]
    return [pattern for pattern in floats if not fnmatch.filter(names, pattern)]


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


def _place_floats(graph: ir.Graph, sources: Mapping[str, Span], layout: Layout) -> None:
    """Give the weights that stay float their places; drop initializers that nobody reads any more."""
    for name, value in list(graph.initializers.items()):
        if not is_read(value):
            graph.initializers.pop(name)
        elif value.const_value is None:
            shape = [int(size) for size in value.shape]
            entry = layout.add_plain(name, [sources[name]], shape, _NAMES[value.dtype])
            value.const_value = external(name, entry.place, shape, value.dtype, layout)
