"""Graphs as others write them: what every pass takes as it is, or refuses in the same words."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coldpress.errors import ColdpressError
from coldpress.graphs.signature import signature
from coldpress.models.model import Model
from coldpress.models.sources import find_model
from coldpress.parts import Context, DataSource
from coldpress.target import Target
from coldpress.workflow import Step, Workflow
from coldpress.workflow.recipes import complete
from tests.onnx_models import computed, dense, graph, is_near, operators, random, run_pass, saved

FLOAT = TensorProto.FLOAT
X = np.random.default_rng(7).standard_normal((5, 8)).astype(np.float32)
GPU = Target("gpu", "CUDAExecutionProvider", 1)


def rows(name, width, axis="batch", kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, [axis, width])


# Tensors in files


@pytest.mark.parametrize(
    ("location", "message"),
    [("../weights.bin", "outside of the model's folder"), ("/weights.bin", "outside of the model's folder"),
     ("other.bin", "which is missing"), ("short.bin", "is cut off: tensor")],
)  # fmt: skip
def test_tensors_elsewhere_are_refused_by_all_alike(tmp_path, location, message):
    source = saved(dense(), tmp_path / "source", external=True)
    (tmp_path / "weights.bin").write_bytes((source / "weights.bin").read_bytes())
    (source / "short.bin").write_bytes((source / "weights.bin").read_bytes()[:100])
    model = onnx.load(source / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (source / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ColdpressError, match=message):
        find_model(str(source))
    with pytest.raises(ColdpressError, match=message):
        signature(source / "model.onnx")
    for name in PASSES:
        with pytest.raises(ColdpressError, match=message):
            run_pass(name, source)


PASSES = ("onnx_peephole_optimizer", "onnx_dynamic_quantization", "onnx_opset_conversion", "quantize_onnx")


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("name", PASSES[:3])
def test_files_are_linked_as_the_caches_of_hubs_and_stores_do_it(tmp_path, name, is_hard):
    """The hub's cache has links by the names of files to blobs by hashes; a result of ours shares its data with the
    store."""
    blobs, source = saved(dense(), tmp_path / "blobs", external=True), tmp_path / "snapshot"
    source.mkdir()
    for file in [blobs / "model.onnx", blobs / "weights.bin"]:
        blob = file.rename(blobs / f"hash-of-{file.stem}")
        (source / file.name).hardlink_to(blob) if is_hard else (source / file.name).symlink_to(blob)
    for place in (source, source / "model.onnx"):
        assert is_near(computed(source, {"x": X}), computed(run_pass(name, place).path, {"x": X}), 0.1)


def test_a_link_to_a_file_elsewhere_is_refused_by_all_alike(tmp_path):
    source = saved(dense(), tmp_path / "source", external=True)
    (source / "weights.bin").rename(tmp_path / "weights.bin")
    (source / "weights.bin").symlink_to(tmp_path / "weights.bin")
    for name in PASSES:
        with pytest.raises(ColdpressError, match=r"a link to .*, outside of the model's folder"):
            run_pass(name, source)


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("offset", "begin"), ("length", "8")])
def test_tensors_at_no_place_are_refused(tmp_path, key, value):
    source = saved(dense(), tmp_path / "source", external=True)
    model = onnx.load(source / "model.onnx", load_external_data=False)
    [entry] = [entry for entry in model.graph.initializer[0].external_data if entry.key == key]
    entry.value = value
    (source / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ColdpressError, match=rf"'first' has 3072 bytes, and shall lie at .*{value}"):
        find_model(str(source))


# Operators and names


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_a_scale_for_each_output_in_an_old_opset_makes_it_a_newer_one(tmp_path, opset):
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["y"]),
    ]
    ends = [("x", FLOAT, ["n", 3, 8, 8])], [("y", FLOAT, ["n", 16])]
    source = saved(graph(nodes, {"k": random(16, 3, 3, 3)}, *ends, opset=opset), tmp_path / "source")
    made = run_pass("onnx_static_quantization", source, num_samples=4)
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    assert onnx.load(made.path / "model.onnx").opset_import[0].version == 13
    assert is_near(computed(source, feed), computed(made.path, feed), 0.05)


@pytest.mark.parametrize("axis", ["?", "", "batch size", "1.0", "-1", "größe", "N-1"])
@pytest.mark.parametrize(
    "name", ["onnx_dynamic_quantization", "ort_transformers_optimization", "onnx_peephole_optimizer"]
)
def test_open_axes_have_any_name(tmp_path, name, axis):
    ends = [("x", FLOAT, [axis, 8])], [("y", FLOAT, [axis, 96])]
    source = saved(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": random(8, 96)}, *ends), tmp_path / "s")
    made = run_pass(name, source)
    kept = onnx.load(made.path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert kept == axis
    assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X}), 0.05)


def test_branches_that_hand_out_what_is_around_them_stay_and_outputs_keep_their_names(tmp_path):
    branches = [
        helper.make_graph([helper.make_node(kind, ["r"], [f"of_{kind}"])], kind, [], [rows(f"of_{kind}", 8)])
        for kind in ("Identity", "Neg")
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["m"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Identity", ["m"], ["first"]),
        helper.make_node("Identity", ["m"], ["second"]),
        helper.make_node("Identity", ["x"], ["third"]),
    ]
    outputs = [(name, FLOAT, ["batch", 8]) for name in ("first", "second", "r", "third")]
    made = graph(nodes, {"zero": np.array(0, np.float32)}, [("x", FLOAT, ["batch", 8])], outputs)
    source = saved(made, tmp_path / "source")
    simple = run_pass("onnx_peephole_optimizer", source)
    names = [output.name for output in onnx.load(simple.path / "model.onnx").graph.output]
    assert names == ["first", "second", "r", "third"] and operators(simple.path)["Identity"] == 2
    for sign in (1, -1):
        feed = {"x": sign * np.abs(X)}
        assert is_near(computed(source, feed), computed(simple.path, feed), 1e-6)


def test_a_walk_through_many_residuals_sees_each_once(tmp_path):
    """Each Add doubles the number of paths to the input: with sixty of them, no walk over paths ever ends."""
    nodes, last = [helper.make_node("MatMul", ["x", "w"], ["y"])], "x"
    for place in range(60):
        nodes += [
            helper.make_node("Tanh", [last], [f"t{place}"]),
            helper.make_node("Add", [last, f"t{place}"], [f"a{place}"]),
        ]
        last = f"a{place}"
    nodes.append(helper.make_node("Softmax", [last], ["logits"]))
    outputs = [("y", FLOAT, ["n", 64]), ("logits", FLOAT, ["n", 64])]
    source = saved(graph(nodes, {"w": random(64, 64)}, [("x", FLOAT, ["n", 64])], outputs), tmp_path / "source")
    for name in (
        "quantize_onnx",
        "onnx_peephole_optimizer",
        "onnx_dynamic_quantization",
        "ort_transformers_optimization",
    ):
        run_pass(name, source)


def test_sparse_tensors_are_written_out_and_functions_stay(tmp_path):
    values = numpy_helper.from_array(np.arange(1, 9, dtype=np.float32), "w")
    places = numpy_helper.from_array(np.arange(8) * 9, "places")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Twice", ["a"], ["b"], domain="mine"),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    made = graph(nodes, {"v": random(8, 96)}, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 96])])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [8, 8]))
    made.opset_import.append(helper.make_opsetid("mine", 1))
    twice = [helper.make_node("Add", ["p", "p"], ["q"])]
    made.functions.append(helper.make_function("mine", "Twice", ["p"], ["q"], twice, [helper.make_opsetid("", 17)]))
    source = saved(made, tmp_path / "source")
    [[expected]] = [[X @ np.diag(np.arange(1, 9, dtype=np.float32)) * 2 @ random(8, 96)]]
    for name, share in (("onnx_peephole_optimizer", 1e-5), ("onnx_dynamic_quantization", 0.05)):
        assert is_near([expected], computed(run_pass(name, source).path, {"x": X}), share)


def test_a_weight_of_another_type_is_left_alone(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Cast", ["a"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "v"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=FLOAT),
    ]
    tensors = {"w": random(8, 96), "v": random(96, 32).astype(np.float16)}
    source = saved(graph(nodes, tensors, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 32])]), tmp_path / "source")
    for name in ("onnx_dynamic_quantization", "onnx_static_quantization"):
        made = run_pass(name, source)
        assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X}), 0.1)


# Float16


def test_scales_stay_float32_where_the_opset_wants_that(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    tensors = {"scale": np.array(0.03, np.float32), "zero": np.array(128, np.uint8), "w": random(8, 32)}
    ends = [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 32])]
    source = saved(graph(nodes, tensors, *ends, opset=17), tmp_path / "source")
    made = run_pass("onnx_float_to_float16", source, GPU)
    assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X.astype(np.float16)}), 0.05)


def test_two_readers_that_stay_float32_get_one_cast(tmp_path):
    blocked = [helper.make_node("CumSum", [name, "axis"], [f"sum_{name}"]) for name in ("a", "b")]
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["a"]),
        helper.make_node("Resize", ["picture", "", "one4"], ["p"]),
        helper.make_node("Resize", ["picture", "", "one4"], ["q"]),
        helper.make_node("Add", ["a", "one"], ["b"]),
        *blocked,
        helper.make_node("Add", ["sum_a", "sum_b"], ["y"]),
        helper.make_node("Add", ["p", "q"], ["z"]),
    ]
    tensors = {"one": np.ones(1, np.float32), "one4": np.ones(4, np.float32), "axis": np.array(1)}
    inputs = [("x", FLOAT, ["n", 8]), ("picture", FLOAT, [1, 1, 4, 4])]
    outputs = [("y", FLOAT, ["n", 8]), ("z", FLOAT, [1, 1, 4, 4])]
    source = saved(graph(nodes, tensors, inputs, outputs), tmp_path / "source")
    made = run_pass("onnx_float_to_float16", source, GPU, op_block_list=("CumSum", "Mul", "Add"))
    feed = {"x": X, "picture": np.ones((1, 1, 4, 4), np.float32)}
    halves = {name: array.astype(np.float16) for name, array in feed.items()}
    assert is_near(computed(source, feed), computed(made.path, halves), 0.01)


# Inputs that are no float tensors, and sources that are no graphs


def test_texts_are_fed_to_be_timed(tmp_path):
    from coldpress.metrics.latency import Latency

    nodes = [
        helper.make_node("LabelEncoder", ["s"], ["i"], domain="ai.onnx.ml", keys_strings=["a"], values_int64s=[1]),
        helper.make_node("Cast", ["i"], ["y"], to=FLOAT),
    ]
    made = graph(nodes, {}, [("s", TensorProto.STRING, ["n"])], [("y", FLOAT, ["n"])])
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    model = Model(saved(made, tmp_path / "source"), "onnx", "text")
    assert Latency(repeats=3).measure(model, Context(tmp_path, Target(threads=1)))["latency_avg_ms"] > 0
    with pytest.raises(ColdpressError, match="binds no texts"):
        Latency(data=DataSource("synthetic"), io_binding=True).measure(model, Context(tmp_path, Target(threads=1)))


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_a_pass_on_graphs_names_what_makes_one_of_another_source(tmp_path, kind):
    source = Model(tmp_path / "model", kind, "key")
    [step] = complete(Workflow("model", (Step("onnx_dynamic_quantization"),)), source)
    with pytest.raises(ColdpressError, match=f"takes onnx, but gets {kind}") as caught:
        step.check(source, Target())
    assert "'press' in front of it" in caught.value.hint
