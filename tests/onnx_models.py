"""Small graphs for passes that change ONNX models, and what they compute."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from coldpress import parts
from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.target import Target

Feed = Mapping[str, np.ndarray]


def graph(
    nodes: Sequence[Any],
    tensors: Mapping[str, np.ndarray],
    inputs: Sequence[tuple[Any, ...]],
    outputs: Sequence[tuple[Any, ...]],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of ``nodes``; inputs and outputs are ``(name, type, shape)``."""
    made = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info(*facts) for facts in inputs],
        [helper.make_tensor_value_info(*facts) for facts in outputs],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=imports, ir_version=9 if opset < 22 else 10)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)


def dense(opset: int = 17) -> onnx.ModelProto:
    """``x [batch, 8]`` through MatMul, Add, Relu, Gemm to ``y [batch, 4]``."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "first/MatMul"),
        helper.make_node("Add", ["a", "bias"], ["b"], "first/Add"),
        helper.make_node("Relu", ["b"], ["c"], "first/Relu"),
        helper.make_node("Gemm", ["c", "second", "end"], ["y"], "second/Gemm"),
    ]
    tensors = {"first": random(8, 96), "bias": random(96), "second": random(96, 4, seed=1), "end": random(4)}
    shape = ["batch", 8]
    return graph(nodes, tensors, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, ["batch", 4])], opset)


def convolutional() -> onnx.ModelProto:
    """``x [batch, 3, h, w]`` through Conv, Relu, Conv, a global pool, Flatten, Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "k2"], ["c"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("Gemm", ["e", "head"], ["y"], "head"),
    ]
    tensors = {"k1": random(8, 3, 3, 3), "k2": random(8, 8, 3, 3, seed=1), "head": random(8, 5, seed=2)}
    shape = ["batch", 3, "h", "w"]
    return graph(nodes, tensors, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, ["batch", 5])])


def saved(model: onnx.ModelProto, folder: Path, external: bool = False) -> Path:
    """A folder with the model, its tensors beside it when ``external``, and a file that belongs to it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 16} if external else {}
    onnx.save(model, folder / "model.onnx", **options)
    (folder / "vocabulary.txt").write_text("words")
    return folder


def run_pass(name: str, folder: Path, target: Target = Target(threads=1), **options: Any) -> Model:
    """Check and run a pass on a folder; the result lies in a folder of its own."""
    work = parts.find("passes", name)(**options)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    source = Model(folder, "onnx", "test")
    work.check(source, target)
    made: Model = work.run(source, Context(scratch, target))
    return made


def computed(folder: Path, feed: Feed) -> list[np.ndarray]:
    """The outputs of the model in a folder."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, dict(feed))]


def operators(folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node)


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file()}


def is_near(one: Sequence[np.ndarray], other: Sequence[np.ndarray], share: float) -> bool:
    """Whether arrays differ by no more than a share of the largest number."""
    return all(np.abs(a - b).max() <= share * np.abs(a).max() for a, b in zip(one, other, strict=True))


Build = Callable[[], onnx.ModelProto]
