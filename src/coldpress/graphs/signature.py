"""What an ONNX graph takes: names, types and shapes of its inputs, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError

_GATHERS = {"Gather": (0, 1), "GatherBlockQuantized": (0, 1)}
_SAME_NUMBERS = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten")


@dataclass(frozen=True)
class Input:
    """``kind`` is the element type as ONNX numbers it; ``shape`` has sizes, names of open axes, or None.

    ``rows``: for an input of indices, how many rows the table has that they pick from; None where that is not plain.
    """

    name: str
    kind: int
    shape: tuple[int | str | None, ...]
    rows: int | None = None

    @property
    def dtype(self) -> np.dtype:
        from onnx import helper

        return np.dtype(helper.tensor_dtype_to_np_dtype(self.kind))

    @property
    def is_cache(self) -> bool:
        """Whether it holds keys or values of tokens before."""
        return self.name.startswith("past")


def signature(file: Path) -> dict[str, Input]:
    """The inputs that must be fed, in the order of the graph. ColdpressError for a file that is no graph."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except DecodeError as error:
        raise ColdpressError(f"{file} cannot be read as an ONNX model: {error}") from error
    constants = {tensor.name for tensor in graph.initializer}
    rows = _rows_by_input(graph)
    found = {}
    for value in graph.input:
        if value.name not in constants:
            tensor = value.type.tensor_type
            shape = tuple(_size(axis) for axis in tensor.shape.dim)
            found[value.name] = Input(value.name, tensor.elem_type, shape, rows.get(value.name))
    return found


def _size(axis: Any) -> int | str | None:
    return int(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or None


def _rows_by_input(graph: Any) -> dict[str, int]:
    """Input of indices -> rows of the table they pick from: the embedding of a text model."""
    tables = {tensor.name: int(tensor.dims[0]) for tensor in graph.initializer if tensor.dims}
    origin = {value.name: value.name for value in graph.input}
    rows: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _SAME_NUMBERS and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type in _GATHERS:
            table, indices = (node.input[place] for place in _GATHERS[node.op_type])
            if table in tables and indices in origin:
                name = origin[indices]
                rows[name] = min(tables[table], rows.get(name, tables[table]))
    return rows


def empty_cache(name: str, kind: int, shape: tuple[Any, ...], config: Mapping[str, Any], batch: int = 1) -> Any:
    """A cache of keys or values without positions, ``[batch, heads, 0, size]``, as an OrtValue.

    ``config`` is the folder's genai_config.json, which tells the sizes that the graph leaves open. bfloat16 has no numpy
    type, so the ONNX type ``kind`` goes along.
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
