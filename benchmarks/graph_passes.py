"""Six passes on an ONNX model of 500 MB, done together, against each of them alone: time and peak memory.

The model is a stack of products and norms as an exporter writes them, with random weights in a file beside the graph.
Every turn is ``coldpress run`` on a workflow, with an empty cache; its result is opened, and not compared with the
source. So what is measured is reading, rewriting, writing, hashing and opening.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Claim, Options, Outcome, Usage, pinned, run_checked, spread_of_usage, take_turns

_ROUNDS, _LAYERS, _WIDTH = 5, 30, 2048
_TIME, _MEMORY = 1.5, 1.1

PASSES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("onnx_opset_conversion", {"target_opset": 20}),
    ("onnx_peephole_optimizer", {}),
    ("dynamic_to_fixed_shape", {"dim_param": ["batch"], "dim_value": [1]}),
    ("onnx_io_datatype_converter", {"name_pattern": "y", "source_dtype": "float32", "target_dtype": "double"}),
    ("onnx_opset_conversion", {"target_opset": 21}),
    ("onnx_peephole_optimizer", {"onnxscript_optimize": False}),
)
_TOGETHER = "all six"


def run(options: Options) -> Outcome:
    """The claims about passes that share one load and one save."""
    source = model_of_layers(options.scratch / "graph_passes", options.layers or _LAYERS)
    alone = {f"{place + 1}: {one[0]}": [one] for place, one in enumerate(PASSES)}
    contenders = {
        name: lambda passes=passes: _done(source, passes, options)  # type: ignore[misc]
        for name, passes in {**alone, _TOGETHER: PASSES}.items()
    }
    runs = take_turns(contenders, options.rounds or _ROUNDS)
    measured = {name: spread_of_usage(one) for name, one in runs.items()}
    size = sum(file.stat().st_size for file in source.iterdir())
    if not options.keep:
        shutil.rmtree(source)

    def ratio(key: str) -> float:
        """Of all together, in units of the pass that takes most alone."""
        return float(measured[_TOGETHER][key]["median"] / max(measured[name][key]["median"] for name in alone))

    claims = [
        Claim("time of six passes together over that of the longest one alone", ratio("wall_s"), _TIME),
        Claim("peak anonymous memory over that of the one that needs most", ratio("peak_anonymous_mb"), _MEMORY),
    ]
    return Outcome({"model_mb": size / 1e6, "contenders": measured}, claims)


def _done(source: Path, passes: Sequence[tuple[str, dict[str, Any]]], options: Options) -> Usage:
    """``coldpress run`` with these passes, and an empty cache."""
    folder = options.scratch / "graph_passes-out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    workflow = {
        "model": str(source),
        "passes": [{"type": name, "parameters": parameters} for name, parameters in passes],
        "metrics": [],
        "verify": {"enabled": False},
        "target": {"threads": options.threads},
        "output": str(folder / "out"),
    }
    (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    environment = {**pinned(options.threads), "COLDPRESS_CACHE": str(folder / "cache")}
    used = run_checked([sys.executable, "-m", "coldpress", "run", folder / "workflow.json"], environment)
    shutil.rmtree(folder)
    return used


def model_of_layers(folder: Path, layers: int) -> Path:
    """A folder with ``x [batch, 2048]`` through ``layers`` of norm, product, GELU and sum, to ``y``; opset 17, float32.

    Norm and GELU are written in the operators that exporters take, so that there is something to simplify.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    scalars = {"two": 2.0, "epsilon": 1e-5, "root": 2**0.5, "one": 1.0, "half": 0.5, "zero": 0.0}
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in scalars.items()]
    nodes, offset = [], 0
    with (folder / "model.onnx.data").open("wb") as data:
        for layer in range(layers):
            weight = (generator.standard_normal((_WIDTH, _WIDTH), np.float32) / _WIDTH**0.5).astype(np.float32)
            data.write(weight.tobytes())
            tensor = TensorProto(
                name=f"w{layer}",
                data_type=TensorProto.FLOAT,
                dims=weight.shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += weight.nbytes
            nodes += _layer(layer)
    nodes.append(helper.make_node("Identity", [f"h{layers}"], ["y"], name="end"))
    shape = ["batch", _WIDTH]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(folder / "model.onnx"))
    return folder


def _layer(layer: int) -> list[Any]:
    """The nodes of one layer, from ``h{layer}`` to ``h{layer + 1}``."""
    from onnx import helper

    before = "x" if layer == 0 else f"h{layer}"
    steps = [
        ("ReduceMean", [before], "mean", {"axes": [-1], "keepdims": 1}),
        ("Sub", [before, "mean"], "off", {}),
        ("Pow", ["off", "two"], "square", {}),
        ("ReduceMean", ["square"], "variance", {"axes": [-1], "keepdims": 1}),
        ("Add", ["variance", "epsilon"], "above", {}),
        ("Sqrt", ["above"], "deviation", {}),
        ("Div", ["off", "deviation"], "norm", {}),
        ("MatMul", ["norm", f"w{layer}"], "product", {}),
        ("Add", ["product", "zero"], "shifted", {}),
        ("Div", ["shifted", "root"], "scaled", {}),
        ("Erf", ["scaled"], "erf", {}),
        ("Add", ["erf", "one"], "gate", {}),
        ("Mul", ["shifted", "gate"], "gated", {}),
        ("Mul", ["gated", "half"], "gelu", {}),
        ("Identity", ["gelu"], "same", {}),
        ("Add", [before, "same"], f"h{layer + 1}", {}),
    ]
    inner = {name for _, _, name, _ in steps[:-1]}

    def own(name: str) -> str:
        return f"{name}.{layer}" if name in inner else name

    return [
        helper.make_node(kind, [own(name) for name in inputs], [own(output)], name=f"{layer}/{place}/{kind}", **more)
        for place, (kind, inputs, output, more) in enumerate(steps)
    ]
