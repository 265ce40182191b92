"""Passes that change a graph and not what it computes: simpler, another opset, fixed sizes, other types, fused
operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from coldpress.errors import ColdpressError
from coldpress.target import Target
from tests.onnx_models import computed, convolutional, dense, files, graph, is_near, operators, random, run_pass, saved

X = np.random.default_rng(7).standard_normal((5, 8)).astype(np.float32)
GPU = Target("gpu", "CUDAExecutionProvider", 1)


def loaded(folder):
    return onnx.load(folder / "model.onnx")


def shape_of(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def clumsy():
    """``x`` times a weight made of two constants, twice over, with an Identity and a node that nobody reads."""
    nodes = [
        helper.make_node("Add", ["one", "two"], ["sum"], "constant"),
        helper.make_node("Identity", ["x"], ["same"], "same"),
        helper.make_node("Mul", ["same", "sum"], ["a"], "first"),
        helper.make_node("Mul", ["same", "sum"], ["b"], "again"),
        helper.make_node("Exp", ["a"], ["unread"], "unread"),
        helper.make_node("MatMul", ["a", "w"], ["c"], "left"),
        helper.make_node("MatMul", ["b", "w.copy"], ["d"], "right"),
        helper.make_node("Add", ["c", "d"], ["y"], "end"),
    ]
    weight = random(8, 64)
    tensors = {"one": random(8, seed=3), "two": random(8, seed=4), "w": weight, "w.copy": weight.copy()}
    ends = [("x", TensorProto.FLOAT, ["batch", 8])], [("y", TensorProto.FLOAT, ["batch", 64])]
    return graph(nodes, tensors, *ends)


@pytest.mark.parametrize("external", [False, True])
def test_a_clumsy_graph_becomes_a_simple_one(tmp_path, external):
    source = saved(clumsy(), tmp_path / "source", external)
    made = run_pass("onnx_peephole_optimizer", source)
    assert operators(made.path) == {"Mul": 1, "MatMul": 1, "Add": 1}
    assert len(loaded(made.path).graph.initializer) == 2
    assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X}), 1e-6)
    assert made.provenance.remarks == ("model.onnx: 8 nodes became 3",)
    assert files(made.path) == {"model.onnx", "vocabulary.txt", *(["model.onnx.data"] if external else [])}


def test_switching_everything_off_is_refused(tmp_path):
    with pytest.raises(ColdpressError, match="nothing would change"):
        source = saved(clumsy(), tmp_path / "source")
        run_pass("onnx_peephole_optimizer", source, onnxscript_optimize=False, remove_duplicates=False)


@pytest.mark.parametrize("opset", [15, 21, 23])
@pytest.mark.parametrize("external", [False, True])
def test_an_opset_becomes_another(tmp_path, opset, external):
    source = saved(dense(), tmp_path / "source", external)
    made = run_pass("onnx_opset_conversion", source, target_opset=opset)
    assert {one.domain: one.version for one in loaded(made.path).opset_import}[""] == opset
    assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X}), 1e-6)


def test_opsets_that_there_are_not_or_that_lack_an_operator_are_refused(tmp_path):
    with pytest.raises(ColdpressError, match="no opset 99"):
        run_pass("onnx_opset_conversion", saved(dense(), tmp_path / "source"), target_opset=99)
    nodes = [helper.make_node("Gelu", ["x"], ["y"], "gelu")]
    ends = [("x", TensorProto.FLOAT, ["batch", 8])], [("y", TensorProto.FLOAT, ["batch", 8])]
    newer = saved(graph(nodes, {}, *ends, opset=20), tmp_path / "newer")
    with pytest.raises(ColdpressError, match=r"cannot be converted from opset 20 to 13: .*Gelu"):
        run_pass("onnx_opset_conversion", newer, target_opset=13)


def test_named_dimensions_get_their_size_and_outputs_follow(tmp_path):
    source = saved(convolutional(), tmp_path / "source", external=True)
    made = run_pass("dynamic_to_fixed_shape", source, dim_param=("batch", "h", "w"), dim_value=(2, 12, 16))
    fixed = loaded(made.path).graph
    assert shape_of(fixed.input[0]) == [2, 3, 12, 16] and shape_of(fixed.output[0]) == [2, 5]
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 12, 16)).astype(np.float32)}
    assert is_near(computed(source, feed), computed(made.path, feed), 1e-6)
    whole = run_pass("dynamic_to_fixed_shape", source, input_name=("x",), input_shape=("2,3,12,16",))
    assert shape_of(loaded(whole.path).graph.input[0]) == [2, 3, 12, 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no size is given"),
        ({"dim_param": ("batch",)}, "dim_param names 1, dim_value gives 0"),
        ({"dim_param": ("bach",), "dim_value": (1,)}, "no input has a dimension 'bach'"),
        ({"dim_param": ("batch",), "dim_value": (0,)}, "size of 'batch' is 0"),
        ({"input_name": ("y",), "input_shape": ("1,8",)}, "no input 'y'"),
        ({"input_name": ("x",), "input_shape": ("1,9",)}, "does not fit"),
        ({"input_name": ("x",), "input_shape": ("one",)}, "is no shape"),
    ],
)
def test_sizes_that_fit_nothing_are_refused(tmp_path, options, message):
    with pytest.raises(ColdpressError, match=message):
        run_pass("dynamic_to_fixed_shape", saved(dense(), tmp_path / "source"), **options)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("external", [False, True])
def test_float16_halves_the_weights_and_keeps_what_is_asked(tmp_path, keep, external):
    source = saved(dense(), tmp_path / "source", external)
    options = {"keep_io_types": keep, "node_block_list": ("second/*",)}
    made = run_pass("onnx_float_to_float16", source, GPU, **options)
    halved = loaded(made.path).graph
    types = {tensor.name: tensor.data_type for tensor in halved.initializer}
    assert types["first"] == TensorProto.FLOAT16 and types["second"] == TensorProto.FLOAT
    io = TensorProto.FLOAT if keep else TensorProto.FLOAT16
    assert {value.type.tensor_type.elem_type for value in (*halved.input, *halved.output)} == {io}
    feed = {"x": X if keep else X.astype(np.float16)}
    assert is_near(computed(source, {"x": X}), computed(made.path, feed), 0.01)


def test_ends_that_are_named_stay_float32(tmp_path):
    source = saved(dense(), tmp_path / "source")
    halved = loaded(run_pass("onnx_float_to_float16", source, GPU, keep_io_types=("y",)).path).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*halved.input, *halved.output)}
    assert types == {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT}
    with pytest.raises(ColdpressError, match="there is no input or output 'logits'"):
        run_pass("onnx_float_to_float16", source, GPU, keep_io_types=("logits",))


@pytest.mark.parametrize("external", [True, False])
def test_numbers_beyond_float16_are_cut_and_said(tmp_path, external):
    model = dense()
    weight = random(8, 96)
    weight[0, 0], weight[1, 1] = 1e6, 1e-9
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "first"))
    made = run_pass("onnx_float_to_float16", saved(model, tmp_path / "source", external=external), GPU)
    stored = next(one for one in loaded(made.path).graph.initializer if one.name == "first")
    values = onnx.numpy_helper.to_array(stored)
    assert values[0, 0] == 65504 and values[1, 1] > 0
    assert made.provenance.remarks == ("model.onnx: numbers beyond the range of float16 were cut in first",)


def test_float16_for_a_cpu_is_refused(tmp_path):
    with pytest.raises(ColdpressError, match="no float16 matrix product"):
        run_pass("onnx_float_to_float16", saved(dense(), tmp_path / "source"))


def test_inputs_and_outputs_change_their_type_and_nothing_else(tmp_path):
    source = saved(dense(), tmp_path / "source")
    kinds = {"source_dtype": "float32", "target_dtype": "float16"}
    made = run_pass("onnx_io_datatype_converter", source, name_pattern="*", **kinds)
    ends = [*loaded(made.path).graph.input, *loaded(made.path).graph.output]
    assert [(value.name, value.type.tensor_type.elem_type) for value in ends] == [
        ("x", TensorProto.FLOAT16), ("y", TensorProto.FLOAT16)]  # fmt: skip
    assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X.astype(np.float16)}), 0.01)
    output = run_pass("onnx_io_datatype_converter", source, name_pattern="y", **kinds)
    assert is_near(computed(source, {"x": X}), computed(output.path, {"x": X}), 0.01)
    with pytest.raises(ColdpressError, match="no input or output that matches 'logits' is float16; found: x float"):
        run_pass("onnx_io_datatype_converter", source)


def test_patterns_are_fused_and_a_fused_graph_stays(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "product"),
        helper.make_node("Add", ["bias", "m"], ["a"], "bias"),
        helper.make_node("Div", ["a", "root"], ["d"], "divide"),
        helper.make_node("Erf", ["d"], ["e"], "erf"),
        helper.make_node("Add", ["e", "one"], ["f"], "plus"),
        helper.make_node("Mul", ["a", "f"], ["g"], "times"),
        helper.make_node("Mul", ["g", "half"], ["y"], "half"),
    ]
    constants = {
        "root": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    tensors = {"w": random(8, 32), "bias": random(32), **constants}
    ends = [("x", TensorProto.FLOAT, ["batch", "t", 8])], [("y", TensorProto.FLOAT, ["batch", "t", 32])]
    source, x = saved(graph(nodes, tensors, *ends), tmp_path / "source"), X[None]
    made = run_pass("ort_transformers_optimization", source)
    assert "fused 1 BiasGelu" in made.provenance.remarks[0]
    assert operators(made.path) == {"MatMul": 1, "BiasGelu": 1}
    assert is_near(computed(source, {"x": x}), computed(made.path, {"x": x}), 1e-5)
    again = run_pass("ort_transformers_optimization", made.path)
    assert again.provenance.remarks == ("model.onnx: nothing left to fuse, it has 1 BiasGelu",)
    assert operators(again.path) == operators(made.path)
    off = run_pass("ort_transformers_optimization", source, optimization_options={"enable_bias_gelu": False})
    assert operators(off.path)["BiasGelu"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"model_type": "birt"}, "birt"), ({"optimization_options": {"enable_gelo": True}}, "enable_gelo"),
     ({"only_onnxruntime": True}, "opt_level")],
)  # fmt: skip
def test_wrong_options_of_the_fusion_are_refused(tmp_path, options, message):
    with pytest.raises(ColdpressError, match=message):
        run_pass("ort_transformers_optimization", saved(dense(), tmp_path / "source"), **options)


@pytest.mark.parametrize("name", ["onnx_peephole_optimizer", "onnx_opset_conversion", "onnx_dynamic_quantization"])
def test_a_single_file_becomes_a_folder(tmp_path, name):
    file = saved(dense(), tmp_path / "source") / "model.onnx"
    renamed = file.rename(file.with_name("network.onnx"))
    made = run_pass(name, renamed)
    assert files(made.path) == {"model.onnx"}


def test_a_folder_without_a_graph_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ColdpressError, match="holds no ONNX graph"):
        run_pass("onnx_peephole_optimizer", tmp_path / "empty")
