"""LoRA slots: optional inputs through which an adapter adds a product of two small matrices to linear layers.

A slot is a pair of inputs, A ``[in, r]`` and B ``[r, out]``, that are initializers at once (ONNX Runtime calls them
overridable). Their own rank ``r`` is 0, so that the product is nothing and the base answers as without slots, to the
bit. An adapter file (``adapter_file``) fills them. There is one slot for each product of the graph: where layers are
joined (q, k, v; gate, up) their A's lie side by side and B is block-diagonal. The graph's metadata says which rows of
which modules a slot's outputs are, so that an adapter can be fitted to a graph that is there already.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

import onnx_ir as ir

from coldpress.errors import ColdpressError
from coldpress.graphs.linears import Linear, find_head, find_linears
from coldpress.graphs.lora_metadata import METADATA, Piece, Slot
from coldpress.models.adapter_base import EMBEDDINGS
from coldpress.models.checkpoint import Span
from coldpress.models.packed.spans import PackedSpan

_HEAD = "lm_head"
_PRODUCTS = ("MatMul", "MatMulNBits")
_TYPES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}


def find_slots(
    graph: ir.Graph, sources: Mapping[str, Span], checkpoint: Mapping[str, Span], wanted: Iterable[str]
) -> dict[str, Slot]:
    """The slots that ``wanted`` modules need, by the names that their products get when the graph is encoded.

    ``checkpoint``: its tensors as they are, which say what part of a module a product has. Raises ColdpressError for
    modules that are no product of the graph's own, such as experts that are stored as one tensor.
    """
    asked, placed = set(wanted), set[str]()
    found: dict[str, Slot] = {}
    linears = list(find_linears(graph, sources))
    head = find_head(graph, linears)
    for linear in linears:
        pieces = _pieces(linear, sources, checkpoint)
        if linear is head and len(pieces) == 1 and pieces[0].module.endswith(EMBEDDINGS):
            pieces = [replace(pieces[0], module=_HEAD)]  # tied
        if asked.isdisjoint(piece.module for piece in pieces):
            continue
        placed |= {piece.module for piece in pieces}
        whole = len(pieces) == 1 and pieces[0].stop - pieces[0].start == _rows(pieces[0].module, checkpoint, linear)
        slot = Slot(pieces[0].module if whole else linear.module, linear.columns, tuple(pieces))
        found[linear.module] = slot
        if linear is head:
            found[_HEAD] = slot
    if missing := sorted(asked - placed):
        raise ColdpressError(
            f"an adapter changes '{missing[0]}', which is no matrix product of its own in the graph",
            hint="merge the adapter into its base (pass merge_adapter_weights) and press the merged model",
        )
    return found


def _rows(module: str, checkpoint: Mapping[str, Span], linear: Linear) -> int:
    span = checkpoint.get(f"{module}.weight")
    return linear.rows if span is None or linear.rows in span.shape else span.shape[0]


def _pieces(linear: Linear, sources: Mapping[str, Span], checkpoint: Mapping[str, Span]) -> list[Piece]:
    """What the outputs of a product are; neighbouring rows of one module are one piece.

    Empty where that is not plain.
    """
    pieces: list[Piece] = []
    for weight in linear.weights:
        span = sources[str(weight.name)]
        start = _first_row(span, checkpoint.get(span.name))
        if start is None:
            return []
        module = span.name.removesuffix(".weight")
        stop = start + span.shape[0]
        if pieces and pieces[-1].module == module and pieces[-1].stop == start:
            pieces[-1] = Piece(module, pieces[-1].start, stop)
        else:
            pieces.append(Piece(module, start, stop))
    return pieces


def _first_row(span: Span, whole: Span | None) -> int | None:
    """The output of the whole layer with which a weight ``[out, in]`` begins; None where it is not consecutive outputs
    of it."""
    if whole is None or len(span.shape) != 2:
        return None
    if isinstance(span, PackedSpan):
        return span.first
    if span.file != whole.file or sorted(span.strides) != sorted(whole.strides) or span.shape[1] not in whole.shape:
        return None
    return (span.offset - whole.offset) // (span.strides[0] * span.item_bytes)


def add_slots(model: ir.Model, slots: Mapping[str, Slot]) -> list[Slot]:
    """Give the products with these names their slots, behind their bias if it is part of the product; returns the
    slots."""
    added = []
    for node in list(model.graph):
        if node.op_type in _PRODUCTS and node.name in slots:
            added.append(_add_slot(model.graph, node, slots[node.name]))
    model.metadata_props[METADATA] = json.dumps([asdict(slot) for slot in added])
    return added


def _add_slot(graph: ir.Graph, product: ir.Node, slot: Slot) -> Slot:
    old = product.outputs[0]
    dtype = old.dtype or ir.DataType.FLOAT
    rank = f"{slot.name}.rank"
    a = optional_input(graph, slot.a, (slot.inputs, 0), (slot.inputs, rank), dtype)
    b = optional_input(graph, slot.b, (0, slot.outputs), (rank, slot.outputs), dtype)
    down = ir.node("MatMul", [product.inputs[0], a], name=f"{slot.name}.lora_A")
    up = ir.node("MatMul", [down.outputs[0], b], name=f"{slot.name}.lora_B")
    add = ir.node("Add", [up.outputs[0], up.outputs[0]], name=f"{slot.name}.lora")
    for node in (down, up, add):
        node.outputs[0].type = old.type
    add.outputs[0].shape = old.shape
    graph.insert_after(product, [down, up, add])
    ir.convenience.replace_all_uses_with(old, add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, old)
    if any(output is add.outputs[0] for output in graph.outputs):
        add.outputs[0].name, old.name = old.name, f"{slot.name}.base"
    return Slot(slot.name, slot.inputs, slot.pieces, _TYPES[dtype])


def optional_input(
    graph: ir.Graph, name: str, own: tuple[int, int], shape: tuple[int | str, int | str], dtype: ir.DataType
) -> ir.Value:
    """An input with a value of its own, ``own`` its shape, that another one of ``shape`` may stand in for."""
    import numpy as np

    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    value.const_value = ir.tensor(np.zeros(own, np.float32), dtype=ir.DataType.FLOAT, name=name)
    if dtype != ir.DataType.FLOAT:
        value.const_value = ir.tensor(np.zeros(own, dtype.numpy()), dtype=dtype, name=name)
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value
