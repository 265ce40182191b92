"""What may make a graph faster is tried, and kept only if it does."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, save

import coldpress
from coldpress.models.model import Model, content_key, find_graphs
from coldpress.parts import Context, find
from coldpress.target import Target

RANDOM = np.random.default_rng(0)


def graph(kind, size):
    """A chain of products, or of sums of its input, of a size."""
    weight = RANDOM.standard_normal((size, size)).astype(np.float32) / size**0.5
    nodes, value = [], "x"
    for place in range(4):
        nodes.append(helper.make_node(kind, [value, "w" if kind == "MatMul" else "x"], [f"v{place}"], name=f"n{place}"))
        value = f"v{place}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])
    y = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", size])
    made = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")] if kind == "MatMul" else [])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    save(graph("MatMul", 512), tmp_path / "model/large.onnx")
    save(graph("Add", 8), tmp_path / "model/plain.onnx")
    return tmp_path / "model"


def test_each_graph_gets_what_helps_it_and_the_rest_stays_as_it_is(folder, tmp_path):
    source = Model(folder, "onnx", content_key(folder))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = find("passes", "onnx_fastest")(rounds=3, runs=2).run(source, Context(scratch, Target(threads=1)))
    remarks = " ".join(made.provenance.remarks)
    assert "plain.onnx: there is nothing in it that can be made faster" in remarks
    assert "large.onnx:" in remarks and "as it was" in remarks
    x = RANDOM.standard_normal((3, 512)).astype(np.float32)
    for name, file in find_graphs(folder).items():
        feed = {"x": x if name == "large.onnx" else x[:, :8]}
        before = onnxruntime.InferenceSession(str(file)).run(None, feed)[0]
        after = onnxruntime.InferenceSession(str(find_graphs(made.path)[name])).run(None, feed)[0]
        assert np.linalg.norm(after - before) < 0.25 * np.linalg.norm(before)
    assert {file.name for file in made.path.iterdir()} <= {"large.onnx", "large.onnx.data", "plain.onnx"}


def test_where_nothing_helps_the_model_comes_back_with_that_sentence(tmp_path):
    save(graph("Add", 8), tmp_path / "plain.onnx")
    report = coldpress.optimize(tmp_path / "plain.onnx", tmp_path / "out", cache_dir=tmp_path / "cache")
    assert any("stays as it is" in note for note in report.data["source"]["notes"])
    x = np.ones((2, 8), np.float32)
    found = onnxruntime.InferenceSession(str(next((tmp_path / "out").glob("*.onnx")))).run(None, {"x": x})[0]
    assert np.array_equal(found, 5 * x)
    assert report.exit_code == 0 and report.data["verdict"] == "verified", report.data["verdict"]
