"""How large a model is on disk, and how many bits each of its source's weights takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from coldpress.measuring.encoder_decoder import is_encoder_decoder
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.gguf.file import read_gguf
from coldpress.models.model import Model, files_of, find_graphs
from coldpress.models.onnx_folder import graph_file
from coldpress.parts import Context, Metric, Value

if TYPE_CHECKING:
    import onnx

#: operator -> its inputs that belong to a quantized weight (scales, zero points) or are tables, not weights
_NOT_WEIGHTS = {
    "MatMulNBits": (2, 3, 4),
    "GatherBlockQuantized": (2, 3),
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulInteger": (2, 3),
    "QMoE": (3, 6, 9),
}
_TABLES = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}
_SAME_VALUES = ("Reshape", "Transpose", "Cast", "Identity")
_PACKED = (".weight_packed", ".qweight")
_QUANTIZER_DATA = (
    ".weight_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".scales",
    ".qzeros",
    ".g_idx",
)


@dataclass(frozen=True)
class Size(Metric):
    """Bytes of the weights' files and of everything, and bits per weight with scales and zero points.

    A weight is one number of the source: a tied matrix counts once, packed codes count as the numbers they stand
    for, rotary tables do not count.
    """

    values: ClassVar[Mapping[str, Value]] = {
        "model_bytes": Value("lower", "bytes"),
        "total_bytes": Value("lower", "bytes"),
        "weights": Value("neither"),
        "bits_per_weight": Value("lower", "bits"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf", "multimodal", "gguf")
    runs_model: ClassVar[bool] = False

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        total = sum(file.stat().st_size for file in files_of(model.path))
        if model.format in ("hf", "multimodal"):
            files = Checkpoint(model.path).files
            weights, weight_bytes = _count_safetensors(files, model.path)
        elif model.format == "gguf":
            files, weights, weight_bytes = _count_gguf(model.path)
        else:
            files, weights, weight_bytes = _count_graphs(model.path)
        return {
            "model_bytes": sum(file.stat().st_size for file in files),
            "total_bytes": total,
            "weights": weights,
            "bits_per_weight": 8 * weight_bytes / weights if weights else 0.0,
        }


def _count_gguf(file: Path) -> tuple[list[Path], int, int]:
    tensors = read_gguf(file).tensors.values()
    return [file], sum(math.prod(one.shape) for one in tensors), sum(one.size_bytes for one in tensors)


def _count_graphs(path: Path) -> tuple[list[Path], int, int]:
    """Those of the graph of a model; of all its graphs where they are parts, as an encoder and its decoder are."""
    files = find_graphs(path).values() if is_encoder_decoder(path) else [graph_file(path)]
    counted = [_count_graph(file) for file in files]
    return (
        [file for files, _, _ in counted for file in files],
        sum(weights for _, weights, _ in counted),
        sum(stored for _, _, stored in counted),
    )


def _count_graph(file: Path) -> tuple[list[Path], int, int]:
    """The files of a graph, the number of weights it stands for, and their bytes with scales and zero points."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    counts: dict[tuple[str, str], int] = {}
    stored: dict[tuple[str, str], int] = {}
    for node in graph.node:
        if node.op_type in _SAME_VALUES:
            continue  # whoever reads what it gives says what that is
        for index, name in enumerate(node.input):
            tensor = tensors.get(_origin(name, made))
            if tensor is None or index in _TABLES.get(node.op_type, ()):
                continue
            represented = 0 if index in _NOT_WEIGHTS.get(node.op_type, ()) else _represented(node, tensor)
            if represented or index in _NOT_WEIGHTS.get(node.op_type, ()):
                place = _place(tensor)
                counts[place] = max(represented, counts.get(place, 0))
                stored[place] = _bytes(tensor)
    data = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
    return [file, *(file.parent / name for name in sorted(data))], sum(counts.values()), sum(stored.values())


def _place(tensor: onnx.TensorProto) -> tuple[str, str]:
    """Where a tensor's bytes are: tensors that share them, such as a tied head and embedding, are one."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return (entries["location"], entries.get("offset", "0")) if "location" in entries else ("", tensor.name)


def _origin(name: str, made: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor whose values a node input holds, under another shape or type perhaps."""
    while name in made and made[name].op_type in _SAME_VALUES:
        name = made[name].input[0]
    return name


def _represented(node: onnx.NodeProto, tensor: onnx.TensorProto) -> int:
    """How many weights of the source a node's input holds; 0 for shapes, indices and single constants."""
    from onnx import TensorProto

    settings: dict[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
    numbers, kind = int(math.prod(tensor.dims)), tensor.data_type
    if node.op_type == "MatMulNBits" and kind == TensorProto.UINT8:
        return int(settings["N"] * settings["K"])
    if node.op_type == "GatherBlockQuantized" and kind == TensorProto.UINT8:
        return numbers * 8 // settings.get("bits", 4)
    if node.op_type == "QMoE" and kind == TensorProto.UINT8:
        return numbers * 8 // settings.get("expert_weight_bits", 4)
    codes = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return numbers if kind in (*codes, *floats) and numbers > 1 else 0


def _bytes(tensor: onnx.TensorProto) -> int:
    from onnx import TensorProto, helper

    numbers = int(math.prod(tensor.dims))
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return (numbers + 1) // 2
    if tensor.data_type == TensorProto.BFLOAT16:
        return 2 * numbers
    return numbers * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _count_safetensors(files: list[Path], folder: Path) -> tuple[int, int]:
    """Weights and their bytes, from the files' headers; packed codes count as the numbers they stand for."""
    config = folder / "config.json"
    bits = _quantized_bits(json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {})
    weights = stored = 0
    for file in files:
        for name, entry in _header(file).items():
            begin, end = entry["data_offsets"]
            stored += end - begin
            if name.endswith(_PACKED):
                weights += 8 * (end - begin) // bits
            elif not name.endswith(_QUANTIZER_DATA):
                weights += math.prod(entry["shape"])
    return weights, stored


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def _quantized_bits(config: Mapping[str, Any]) -> int:
    """Bits of packed codes by a config's ``quantization_config`` (compressed-tensors, GPTQ, AWQ)."""
    quantization = config.get("quantization_config") or {}
    groups = (quantization.get("config_groups") or {}).values()
    found = [quantization.get("bits"), *((group.get("weights") or {}).get("num_bits") for group in groups)]
    return next((bits for bits in found if bits), 4)
