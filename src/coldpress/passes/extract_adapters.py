"""Take the LoRA weights of an ONNX model out: they become optional inputs of rank 0, and an adapter file that fills them.

For models that an exporter wrote with their adapter in them, as products ``x A B`` whose initializers or nodes have ``lora_A`` and
``lora_B`` in their names (PEFT's modules through ``torch.onnx.export``, both of its ways). A scaling behind the product stays where
it is. Without the file the model is the base alone. A model that has LoRA slots already stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import ColdpressError
from coldpress.model import Model, files_of, link_or_copy
from coldpress.parts import Context, Pass, option
from coldpress.target import Target

if TYPE_CHECKING:
    import numpy as np
    import onnx

_NAME = re.compile(r"(?P<module>.*?)[./]lora_(?P<part>[AB])\b")
_TYPES = {1: "float32", 10: "float16"}


@dataclass(frozen=True)
class ExtractAdapters(Pass):
    accepts = ("onnx",)
    needs = ("onnxruntime",)

    adapter_type: str = option(
        "kind of the adapter in the model; others than lora are no plain products", "lora", ("lora",)
    )
    make_inputs: bool = option("make the weights inputs of the graph; without that they could not be exchanged", True)
    dynamic_lora_r: bool = option("leave the rank open, so that adapters of other ranks fit", True)
    optional_inputs: bool = option("inputs that may be left out, which is the base alone", True)
    save_format: str = option("form of the file", "onnx_adapter", ("onnx_adapter",))

    def check(self, model: Model, target: Target) -> None:
        for name in ("make_inputs", "dynamic_lora_r", "optional_inputs"):
            if not getattr(self, name):
                raise ColdpressError(
                    f"{name}: false would write a model that needs one adapter of one rank", hint="leave it out"
                )

    def run(self, model: Model, ctx: Context) -> Model:
        from coldpress.graphs import adapter_file
        from coldpress.graphs.lora_slots import read_slots
        from coldpress.graphs.runtime import graph_file

        file = graph_file(model.path)
        root = model.path if model.path.is_dir() else model.path.parent
        for other in files_of(root):
            if other != file:
                link_or_copy(other, ctx.scratch / other.relative_to(root))
        target = ctx.scratch / file.relative_to(root)
        if read_slots(file):
            link_or_copy(file, target)
            return Model(ctx.scratch, "onnx", "", model.notes)
        arrays = _take_out(file, target)
        adapter = adapter_file.beside(target.parent, "", 1)
        adapter_file.write(adapter, arrays)
        ranks = sorted({array.shape[1] for name, array in arrays.items() if ".lora_A." in name})
        facts = {"name": "adapter", "file": adapter.name, "ranks": ranks, "modules": len(arrays) // 2}
        return Model(ctx.scratch, "onnx", "", {**model.notes, "extracted": {**facts, "bytes": adapter.stat().st_size}})


@dataclass(frozen=True)
class _Weight:
    """A LoRA weight in a graph: what reads it, the initializer, whether a Transpose stands between the two."""

    module: str
    part: str
    product: onnx.NodeProto
    tensor: onnx.TensorProto
    transposed: bool


def _take_out(file: Path, target: Path) -> dict[str, np.ndarray]:
    """Write the graph with slots to ``target``; gives what was in it, by the names of the inputs."""
    import onnx
    from onnx import helper, numpy_helper

    from coldpress.graphs.lora_slots import METADATA, Piece, Slot

    model = onnx.load(str(file), load_external_data=False)
    graph, arrays = model.graph, dict[str, Any]()
    for weight in list(_weights(graph)):
        array = numpy_helper.to_array(weight.tensor, str(file.parent))
        name = f"{weight.module}.lora_{weight.part}.weight"
        arrays[name] = array.T if weight.transposed else array
        axis = 1 if weight.part == "A" else 0
        open_shape: list[int | str] = list(arrays[name].shape)
        own = list(arrays[name].shape)
        open_shape[axis], own[axis] = f"{weight.module}.rank", 0
        graph.input.append(helper.make_tensor_value_info(name, weight.tensor.data_type, open_shape))
        graph.initializer.append(helper.make_tensor(name, weight.tensor.data_type, own, []))
        weight.product.input[1] = name
    pairs = {name.removesuffix(".lora_A.weight") for name in arrays if name.endswith(".lora_A.weight")}
    halves = {name.removesuffix(".lora_B.weight") for name in arrays if name.endswith(".lora_B.weight")}
    if not pairs or pairs != halves:
        problem = f"only one half of the pair of '{min(pairs ^ halves)}'" if pairs ^ halves else "no LoRA weights"
        raise ColdpressError(
            f"{file} has {problem}: products whose weights have lora_A and lora_B in their names are looked for",
            hint="export the model with its adapter not merged; or press its Hugging Face base with --adapter_path",
        )
    slots = []
    for module in sorted(pairs):
        a, b = arrays[f"{module}.lora_A.weight"], arrays[f"{module}.lora_B.weight"]
        slots.append(Slot(module, a.shape[0], (Piece(module, 0, b.shape[1]),), str(a.dtype)))
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA, value=json.dumps([asdict(s) for s in slots])))
    _remove_unread(graph)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(target))
    return arrays


def _weights(graph: onnx.GraphProto) -> Iterator[_Weight]:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        transpose = made.get(node.input[1])
        between = transpose is not None and transpose.op_type == "Transpose"
        tensor = tensors.get(transpose.input[0] if between and transpose is not None else node.input[1])
        match = next((m for name in _names(node, tensor) if (m := _NAME.search(name))), None)
        if tensor is not None and match is not None and tensor.data_type in _TYPES:
            yield _Weight(_module(match), match["part"], node, tensor, between)


def _names(node: onnx.NodeProto, tensor: onnx.TensorProto | None) -> list[str]:
    return [tensor.name if tensor is not None else "", node.name]


def _module(match: Mapping[str, str] | re.Match[str]) -> str:
    """``/base_model/model/model/layers.0/q_proj`` and ``base_model.model.model.layers.0.q_proj`` alike."""
    return match["module"].replace("/", ".").strip(".").removeprefix("base_model.model.")


def _remove_unread(graph: onnx.GraphProto) -> None:
    """Drop initializers, and their Transposes, that nothing reads any more."""
    kept = {value.name for value in graph.output}
    for _ in range(2):
        read = kept | {name for node in graph.node for name in node.input}
        for node in [n for n in graph.node if n.op_type == "Transpose" and not read.intersection(n.output)]:
            graph.node.remove(node)
        for tensor in [t for t in graph.initializer if t.name not in read]:
            graph.initializer.remove(tensor)
