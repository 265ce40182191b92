"""LoRA weights inside a graph that an exporter wrote: found by what they do, taken out, their places left as slots.

Exporters keep few names, so a pair is known by its shape: ``y = product(x)``, ``d = x A``, ``u = d B``, a scaling of
``u`` perhaps, and ``y + u``, where A and B are initializers, or transposed ones, and nothing else reads ``d``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from coldpress.errors import ColdpressError
from coldpress.graphs.edits import drop_unread, drop_unread_value
from coldpress.graphs.lora_metadata import METADATA, Piece, Slot
from coldpress.graphs.lora_slots import optional_input
from coldpress.graphs.queries import is_onnx, maker, only_reader
from coldpress.models.onnx_graphs import array_of

_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits", "MatMulInteger", "DynamicQuantizeMatMul")
_ON_THE_WAY = ("Mul", "Cast", "Identity", "Dropout")
#: names that PEFT's modules leave behind: in initializers and scopes, and in nodes as torch's older exporter names them
_NAMES = (re.compile(r"(.*?)[./]lora_A\b"), re.compile(r"(.*)/default(?:_\d+)?/MatMul"))
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class _Half:
    """A MatMul by an initializer, which goes through a Transpose first, if there is one."""

    node: ir.Node
    weight: ir.Value
    transpose: ir.Node | None

    @classmethod
    def of(cls, node: ir.Node | None) -> _Half | None:
        if node is None or not is_onnx(node, "MatMul"):
            return None
        transpose = maker(node.inputs[1], "Transpose")
        weight = transpose.inputs[0] if transpose is not None else node.inputs[1]
        if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
            return None
        return cls(node, weight, transpose)

    def values(self) -> np.ndarray:
        """The matrix as the product has it, ``[in, out]``."""
        array = array_of(self.weight.const_value)
        return np.ascontiguousarray(array.T if self.transpose is not None else array)

    def open(self, graph: ir.Graph, name: str, shape: tuple[int, ...], axis: int) -> None:
        """Let the product read an optional input of rank 0 in place of its weight; ``axis`` is that of the rank."""
        rank = f"{name.rpartition('.lora_')[0]}.rank"
        own, open_shape = list[int](shape), list[int | str](shape)
        own[axis], open_shape[axis] = 0, rank
        dtype = self.weight.dtype or ir.DataType.FLOAT
        value = optional_input(graph, name, (own[0], own[1]), (open_shape[0], open_shape[1]), dtype)
        self.node.replace_input_with(1, value)
        if self.transpose is not None:
            drop_unread(graph, [self.transpose])
        drop_unread_value(graph, self.weight)


def _pairs(graph: ir.Graph) -> Iterator[tuple[_Half, _Half]]:
    for node in graph:
        up = _Half.of(node)
        down = _Half.of(maker(node.inputs[0])) if up else None
        if up and down and only_reader(down.node.outputs[0]) is node and _is_added(node, down.node.inputs[0]):
            yield down, up


def _is_added(up: ir.Node, read: ir.Value | None) -> bool:
    """Whether the end of a pair is added to a product that reads what the pair reads."""
    value = up.outputs[0]
    while (after := only_reader(value)) is not None and after.op_type in _ON_THE_WAY:
        value = after.outputs[0]
    if after is None or after.op_type != "Add":
        return False
    base = next((maker(one) for one in after.inputs if one is not value), None)
    if base is not None and base.op_type == "Add":  # its bias
        base = next((made for one in base.inputs if (made := maker(one)) is not None), None)
    return base is not None and base.op_type in _PRODUCTS and base.inputs[0] is read


def take_out(model: ir.Model, name: str) -> dict[str, np.ndarray]:
    """Rewrite a graph with slots; gives what was in these, by the names of the inputs.

    ColdpressError, with the ``name`` of the graph, where it has no LoRA weights.
    """
    graph, arrays = model.graph, dict[str, np.ndarray]()
    slots = []
    for number, (down, up) in enumerate(list(_pairs(graph))):
        a, b = down.values(), up.values()
        module = _module(down, number)
        slots.append(Slot(module, len(a), (Piece(module, 0, b.shape[1]),), str(a.dtype)))
        arrays[slots[-1].a], arrays[slots[-1].b] = a, b
        down.open(graph, slots[-1].a, a.shape, axis=1)
        up.open(graph, slots[-1].b, b.shape, axis=0)
    if not slots:
        raise ColdpressError(
            f"{name} has no LoRA weights: no product of two initializers is added to another product of the same input",
            hint="export the model with its adapter not merged; or press its Hugging Face base with --adapter_path",
        )
    model.metadata_props[METADATA] = json.dumps([asdict(slot) for slot in slots])
    return arrays


def _module(down: _Half, number: int) -> str:
    """The name of the module that a pair belongs to, as far as the exporter left one."""
    inner = re.findall(r"'([^']*)'", down.node.metadata_props.get(_SCOPES, ""))
    for text in (str(down.weight.name), *inner, down.node.name or ""):
        for pattern in _NAMES:
            if match := pattern.match(text):
                return match[1].replace("/", ".").strip(".").removeprefix("base_model.model.")
    return f"layer_{number}"
