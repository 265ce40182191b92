"""NNCF's weight compression of an ONNX model with float weights: AWQ and scale estimation, int4 asymmetric, groups of
32.

``python nncf_awq.py SOURCE CALIBRATION.npy OUT``, in NNCF's environment. The embedding and the head become int8, which
is NNCF's own default; a head that is tied to the embedding becomes a tensor of its own, without which NNCF fails.
``SOURCE`` is a folder with model.onnx that gives the logits of all positions; so will ``OUT`` be.
"""

import json
import shutil
import sys
from pathlib import Path

import nncf
import numpy as np
import onnx


def main(source: str, calibration: str, out: str) -> None:
    folder, made = Path(source), Path(out)
    model = onnx.load(str(folder / "model.onnx"))
    _untie(model.graph)
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    feeds = [_feeds(model, config, window) for window in np.load(calibration)]
    pressed = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=32,
        ratio=1.0,
        dataset=nncf.Dataset(feeds),
        subset_size=len(feeds),
        awq=True,
        scale_estimation=True,
    )
    made.mkdir(parents=True)
    onnx.save(pressed, str(made / "model.onnx"), save_as_external_data=True, location="model.onnx.data")
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "report.json":
            shutil.copyfile(file, made / file.name)


def _untie(graph: onnx.GraphProto) -> None:
    """Replace transposed weights [rows, columns] by weights of that shape."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        array = onnx.numpy_helper.to_array(weights[node.input[0]]).T
        graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), node.output[0]))
        graph.node.remove(node)


def _feeds(model: onnx.ModelProto, config: dict[str, int], window: np.ndarray) -> dict[str, np.ndarray]:
    """A prompt without anything before it: ids, mask, positions, and key-value caches of no positions."""
    feeds = {}
    for value in model.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value.name == "input_ids":
            array = window[None]
        elif value.name == "attention_mask":
            array = np.ones((1, len(window)))
        elif value.name == "position_ids":
            array = np.arange(len(window))[None]
        elif "past" in value.name:
            array = np.zeros((1, config["num_key_value_heads"], 0, config["head_size"]))
        else:
            raise ValueError(f"unknown input {value.name}")
        feeds[value.name] = array.astype(dtype)
    return feeds


if __name__ == "__main__":
    main(*sys.argv[1:])
