"""LoRA weights inside a graph that an exporter wrote: found by what they do, taken out, their places left as slots.

Exporters keep few names, so a pair is known by its shape: ``y = product(x)``, ``d = x A``, ``u = d B``, a scaling of
``u`` perhaps, and ``y + u``, where A and B are initializers, or transposed ones, and nothing else reads ``d``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.graphs.lora_metadata import METADATA, Piece, Slot

if TYPE_CHECKING:
    import onnx

_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits", "MatMulInteger", "DynamicQuantizeMatMul")
_ON_THE_WAY = ("Mul", "Cast", "Identity", "Dropout")
#: names that PEFT's modules leave behind: in initializers and scopes, and in nodes as torch's older exporter names them
_NAMES = (re.compile(r"(.*?)[./]lora_A\b"), re.compile(r"(.*)/default(?:_\d+)?/MatMul"))
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class _Half:
    """A MatMul by an initializer; ``transposed``: the initializer goes through a Transpose first."""

    node: onnx.NodeProto
    tensor: onnx.TensorProto
    transposed: bool

    def values(self, folder: Path) -> np.ndarray:
        """The matrix as the product has it, ``[in, out]``."""
        from onnx import numpy_helper

        array: np.ndarray = numpy_helper.to_array(self.tensor, str(folder))
        return np.ascontiguousarray(array.T if self.transposed else array)


@dataclass
class _Graph:
    """A graph, looked at from its tensors."""

    proto: onnx.GraphProto

    def __post_init__(self) -> None:
        self.tensors = {tensor.name: tensor for tensor in self.proto.initializer}
        self.made = {name: node for node in self.proto.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def half(self, node: onnx.NodeProto | None) -> _Half | None:
        if node is None or node.op_type != "MatMul":
            return None
        made = self.made.get(node.input[1])
        transposed = made is not None and made.op_type == "Transpose"
        tensor = self.tensors.get(made.input[0] if made is not None and transposed else node.input[1])
        return _Half(node, tensor, transposed) if tensor is not None and len(tensor.dims) == 2 else None

    def pairs(self) -> Iterator[tuple[_Half, _Half]]:
        for node in self.proto.node:
            up = self.half(node)
            down = self.half(self.made.get(node.input[0])) if up else None
            if (
                up
                and down
                and len(self.readers[down.node.output[0]]) == 1
                and self._is_added(up.node, down.node.input[0])
            ):
                yield down, up

    def _is_added(self, up: onnx.NodeProto, read: str) -> bool:
        """Whether the end of a pair is added to a product that reads what the pair reads."""
        name = up.output[0]
        while len(after := self.readers.get(name, [])) == 1 and after[0].op_type in _ON_THE_WAY:
            name = after[0].output[0]
        if len(after) != 1 or after[0].op_type != "Add":
            return False
        [other] = [one for one in after[0].input if one != name] or [name]
        base = self.made.get(other)
        if base is not None and base.op_type == "Add":  # its bias
            base = next((self.made[one] for one in base.input if one in self.made), None)
        return base is not None and base.op_type in _PRODUCTS and base.input[0] == read


def take_out(file: Path) -> dict[str, np.ndarray]:
    """Rewrite a graph with slots; gives what was in these, by the names of the inputs. Its data file stays as it is."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    graph, arrays = model.graph, dict[str, np.ndarray]()
    slots = []
    for number, (down, up) in enumerate(list(_Graph(graph).pairs())):
        a, b = down.values(file.parent), up.values(file.parent)
        module = _module(down, number)
        slots.append(Slot(module, len(a), (Piece(module, 0, b.shape[1]),), str(a.dtype)))
        arrays[slots[-1].a], arrays[slots[-1].b] = a, b
        _open(graph, down, slots[-1].a, a.shape, axis=1)
        _open(graph, up, slots[-1].b, b.shape, axis=0)
    if not slots:
        raise ColdpressError(
            f"{file} has no LoRA weights: no product of two initializers is added to another product of the same input",
            hint="export the model with its adapter not merged; or press its Hugging Face base with --adapter_path",
        )
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA, value=json.dumps([asdict(s) for s in slots])))
    _remove_unread(graph)
    file.unlink()  # it may share its bytes with the model it was copied from
    onnx.save(model, str(file))
    return arrays


def _open(graph: onnx.GraphProto, half: _Half, name: str, shape: tuple[int, ...], axis: int) -> None:
    """Let a product read an optional input of rank 0 in place of its initializer; ``axis`` is that of the rank."""
    from onnx import helper

    open_shape: list[int | str] = list(shape)
    own = list(shape)
    open_shape[axis], own[axis] = f"{name.rpartition('.lora_')[0]}.rank", 0
    graph.input.append(helper.make_tensor_value_info(name, half.tensor.data_type, open_shape))
    graph.initializer.append(helper.make_tensor(name, half.tensor.data_type, own, []))
    half.node.input[1] = name


def _module(down: _Half, number: int) -> str:
    """The name of the module that a pair belongs to, as far as the exporter left one."""
    scopes: Mapping[str, str] = {entry.key: entry.value for entry in down.node.metadata_props}
    inner = re.findall(r"'([^']*)'", scopes.get(_SCOPES, ""))
    for text in (down.tensor.name, *inner, down.node.name):
        for pattern in _NAMES:
            if match := pattern.match(text):
                return match[1].replace("/", ".").strip(".").removeprefix("base_model.model.")
    return f"layer_{number}"


def _remove_unread(graph: onnx.GraphProto) -> None:
    """Drop initializers, and their Transposes, that nothing reads any more."""
    kept = {value.name for value in graph.output}
    read = kept | {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if node.op_type == "Transpose" and read.isdisjoint(node.output)]:
        graph.node.remove(node)
    read = kept | {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
