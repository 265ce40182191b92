"""What an ONNX graph takes: names, types and shapes of its inputs, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.external_data import check_external

#: operators that look indices up: the inputs that hold the table and the indices
_LOOKUPS = {
    "Gather": (0, 1),
    "GatherElements": (0, 1),
    "GatherND": (0, 1),
    "GatherBlockQuantized": (0, 1),
    "EmbedLayerNormalization": (2, 0),
}
_SAME_NUMBERS = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand")
#: operators whose result has as many rows as their first input
_SAME_ROWS = ("Cast", "Identity", "DequantizeLinear", "QuantizeLinear")
#: names of open axes that say nothing: two axes called so need not have the same size
_NO_NAMES = ("", "?", "-1", "None", "none", "unk", "dynamic")


@dataclass(frozen=True)
class Input:
    """``kind`` is the element type as ONNX numbers it, 0 for what is no tensor; ``shape`` has sizes, names of open
    axes, or None.

    ``rows``: for an input of indices, how many rows the table has that they pick from; None where that is not plain.
    ``known``: the values that the graph compares it with or looks it up among.
    """

    name: str
    kind: int
    shape: tuple[int | str | None, ...]
    rows: int | None = None
    known: tuple[Any, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        from onnx import helper

        if not self.kind:
            raise ColdpressError(
                f"input '{self.name}' is a sequence, an optional value or a map; coldpress feeds tensors only",
                hint="make it a graph that takes tensors",
            )
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.kind))

    @property
    def is_cache(self) -> bool:
        """Whether it holds keys or values of tokens before."""
        return self.name.startswith("past")


def signature(file: Path) -> dict[str, Input]:
    """The inputs that must be fed, in the order of the graph.

    ColdpressError for a file that is no graph, and for one whose tensors are not all below its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except DecodeError as error:
        raise ColdpressError(f"{file} cannot be read as an ONNX model: {error}") from error
    check_external(graph, file)
    constants = {tensor.name for tensor in (*graph.initializer, *(one.values for one in graph.sparse_initializer))}
    uses = _Uses(graph)
    found = {}
    for value in graph.input:
        if value.name not in constants:
            tensor = value.type.tensor_type
            shape = tuple(_size(axis) for axis in tensor.shape.dim)
            known = tuple(uses.known.get(value.name, ()))
            found[value.name] = Input(value.name, tensor.elem_type, shape, uses.rows.get(value.name), known)
    return found


def _size(axis: Any) -> int | str | None:
    if axis.HasField("dim_value"):
        return int(axis.dim_value) if axis.dim_value >= 0 else None
    return None if axis.dim_param in _NO_NAMES else axis.dim_param


class _Uses:
    """What a graph does with its inputs. ``rows``: input of indices -> rows of the table they pick from, as the
    embedding of a text model has them; ``known``: input -> the values it is compared with.
    """

    def __init__(self, graph: Any):
        self.rows: dict[str, int] = {}
        self.known: dict[str, list[Any]] = {}
        self._origin = {value.name: value.name for value in graph.input}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._constants: dict[str, Any] = {}
        self._walk(graph)

    def _walk(self, graph: Any) -> None:
        for tensor in graph.initializer:
            self._note(tensor.name, tensor)
        for node in graph.node:
            for attribute in node.attribute:
                for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    self._walk(inner)
            self._look_at(node)

    def _note(self, name: str, tensor: Any) -> None:
        self._shapes[name] = tuple(tensor.dims)
        if len(tensor.dims) <= 1 and (tensor.dims or [1])[0] <= _FEW and tensor.data_location == 0:
            self._constants[name] = tensor

    def _look_at(self, node: Any) -> None:
        first = node.input[0] if node.input else ""
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            self._note(node.output[0], node.attribute[0].t)
        if node.op_type in _SAME_NUMBERS and first in self._origin:
            self._origin[node.output[0]] = self._origin[first]
        if node.op_type in _SAME_ROWS and first in self._shapes:
            self._shapes[node.output[0]] = self._shapes[first]
        if node.op_type in _LOOKUPS and len(node.input) > max(_LOOKUPS[node.op_type]):
            table, indices = (node.input[place] for place in _LOOKUPS[node.op_type])
            axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
            if self._shapes.get(table) and indices in self._origin:
                self._indexes(self._origin[indices], self._shapes[table][axis])
        if node.op_type == "OneHot" and first in self._origin and node.input[1] in self._constants:
            self._indexes(self._origin[first], int(self._values(node.input[1])[0]))
        if node.op_type == "Equal" and any(name in self._origin for name in node.input):
            name = next(name for name in node.input if name in self._origin)
            for other in node.input:
                if other in self._constants:
                    self.known.setdefault(self._origin[name], []).extend(self._values(other))
        if node.op_type == "LabelEncoder" and first in self._origin:
            keys = next((list(one.strings) for one in node.attribute if one.name == "keys_strings"), [])
            self.known.setdefault(self._origin[first], []).extend(key.decode() for key in keys)

    def _indexes(self, name: str, rows: int) -> None:
        self.rows[name] = min(rows, self.rows.get(name, rows))

    def _values(self, name: str) -> list[Any]:
        from onnx import numpy_helper

        found: list[Any] = numpy_helper.to_array(self._constants[name]).reshape(-1).tolist()
        return found


#: constants with more elements are nothing that an input is compared with
_FEW = 4096


def empty_cache(name: str, kind: int, shape: tuple[Any, ...], config: Mapping[str, Any], batch: int = 1) -> Any:
    """A cache of keys or values without positions, ``[batch, heads, 0, size]``, as an OrtValue.

    ``config`` is the folder's genai_config.json, which tells the sizes that the graph leaves open. bfloat16 has no
    numpy type, so the ONNX type ``kind`` goes along.
    """
    from onnx import TensorProto, helper
    from onnxruntime import OrtValue

    if len(shape) != 4:
        raise ColdpressError(f"input '{name}' has {len(shape)} axes; a cache of keys or values has 4")
    decoder = config.get("model", {}).get("decoder", {})
    known = {1: decoder.get("num_key_value_heads"), 3: decoder.get("head_size")}
    heads, size = (shape[axis] if isinstance(shape[axis], int) else known[axis] for axis in (1, 3))
    if heads is None or size is None:
        raise ColdpressError(f"neither the graph nor genai_config.json tells the size of '{name}'")
    dtype = np.uint16 if kind == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(kind)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros((batch, heads, 0, size), dtype), kind)
