"""Every ONNX model that a pass wrote is opened, run, and compared with the one before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import coldpress
from coldpress.errors import ColdpressError
from coldpress.parts import DataSource
from coldpress.parts.schema import plain
from coldpress.workflow import Step, Verify, Workflow
from tests.onnx_models import convolutional, dense, graph, random, saved

pytestmark = pytest.mark.usefixtures("lab_parts")
HALF = {"source_dtype": "float32", "target_dtype": "float16", "name_pattern": "*"}


@pytest.fixture
def run(tmp_path):
    """``run(passes, source)``: a workflow of passes from one ONNX model to another."""

    def _run(steps, source, **verify):
        steps = tuple(Step(name, options) for name, options in steps)
        workflow = Workflow(str(source), steps, output=str(tmp_path / "out"), metrics=(), verify=Verify(**verify))
        return coldpress.run(workflow, cache_dir=tmp_path / "cache", overwrite=True)

    return _run


def large():
    """``x [batch, 8]`` through a MatMul of enough weights for any quantizer, ReLU and another MatMul."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "second"], ["y"], "second"),
    ]
    ends = [("x", TensorProto.FLOAT, ["batch", 64])], [("y", TensorProto.FLOAT, ["batch", 32])]
    return graph(nodes, {"first": random(64, 64), "second": random(64, 32, seed=1)}, *ends)


@pytest.mark.parametrize(
    ("name", "options"),
    [("onnx_peephole_optimizer", {}), ("onnx_opset_conversion", {"target_opset": 20}), ("onnx_dynamic_quantization", {}),
     ("onnx_static_quantization", {"num_samples": 2}), ("quantize_onnx", {"precision": "int4"}),
     ("onnx_io_datatype_converter", HALF), ("ort_transformers_optimization", {}),
     ("dynamic_to_fixed_shape", {"dim_param": ["batch"], "dim_value": [3]}),
     ("session_options", {"intra_op_num_threads": 1})],
)  # fmt: skip
def test_a_pass_from_onnx_to_onnx_is_verified(run, tmp_path, name, options):
    report = run([(name, options)], saved(large(), tmp_path / "source"))
    assert report.data["verdict"] == "verified" and report.exit_code == 0
    assert report.data["quality"]["relative"] <= report.data["quality"]["relative_limit"]


def test_float16_for_a_gpu_that_is_not_here_is_tried_on_the_cpu(tmp_path):
    source = saved(dense(), tmp_path / "source")
    report = coldpress.run_pass(
        "onnx_float_to_float16", source, tmp_path / "out", cache_dir=tmp_path / "c", device="gpu"
    )
    assert report.data["verdict"] == "verified" and 0 < report.data["quality"]["relative"] < 0.03


def test_the_distance_is_the_norm_of_the_difference(run, tmp_path):
    report = run([("spoil", {"share": 0.05})], saved(dense(), tmp_path / "source"))
    assert report.data["quality"]["relative"] == pytest.approx(0.05, rel=1e-3)
    assert report.data["quality"]["relative_limit"] == 0.1 and report.data["verdict"] == "verified"


def test_a_chain_names_the_pass_that_broke_the_model_which_is_written_all_the_same(run, tmp_path):
    steps = [
        ("onnx_opset_conversion", {"target_opset": 18}),
        ("spoil", {"share": 0.3}),
        ("onnx_peephole_optimizer", {}),
    ]
    report = run(steps, saved(dense(), tmp_path / "source"))
    assert report.data["verdict"] == "worse than tolerance" and report.exit_code == 3
    [reason] = report.data["reasons"]
    assert reason.startswith("spoil: output 'y' of model.onnx differs by 0.3") and "a tenth" in reason
    assert (tmp_path / "out/model.onnx").exists()


@pytest.mark.parametrize("enabled", [True, False])
def test_what_does_not_open_is_not_written_verified_or_not(run, tmp_path, enabled):
    steps = [("onnx_opset_conversion", {"target_opset": 18}), ("spoil", {"breaks": "open"})]
    with pytest.raises(ColdpressError, match="what spoil wrote cannot be used") as caught:
        run(steps, saved(dense(), tmp_path / "source"), enabled=enabled)
    assert caught.value.exit_code == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("breaks", "message"), [("run", "the graph before runs"), ("output", "output 'y' is gone")])
def test_what_does_not_run_as_before_is_not_written(run, tmp_path, breaks, message):
    model = dense()
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    with pytest.raises(ColdpressError, match=message) as caught:
        run([("spoil", {"breaks": breaks})], saved(model, tmp_path / "source"))
    assert caught.value.exit_code == 1 and not (tmp_path / "out").exists()


def test_without_verification_nothing_is_compared(run, tmp_path):
    report = run([("spoil", {"share": 0.3})], saved(dense(), tmp_path / "source"), enabled=False)
    assert report.data["verdict"] == "unverified" and report.data["reasons"] == ["verification was turned off"]


def test_a_limit_of_ones_own_counts_and_others_are_refused(run, tmp_path):
    source, off = saved(dense(), tmp_path / "source"), [("spoil", {"share": 0.05})]
    assert run(off, source, tolerance="relative=0.01").exit_code == 3
    assert run(off, source, tolerance="relative=0.06").exit_code == 0
    with pytest.raises(ColdpressError, match="says nothing about an ONNX source") as caught:
        run(off, source, tolerance="kl=0.1")
    assert "relative=" in caught.value.hint
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(ColdpressError, match="no effect on an ONNX source"):
        run(off, source, data=(str(tmp_path / "text.txt"),))


def test_data_of_a_pass_is_what_it_is_compared_on(run, tmp_path):
    """Ranges of numbers from 0 to 1 cut half of the normal distribution, and nothing of these numbers."""
    source = saved(dense(), tmp_path / "source")
    data = plain(DataSource("ramp", {"peaks": [1.0, 0.5]}))
    assert run([("onnx_static_quantization", {"data": data})], source).data["quality"]["relative"] < 0.05


def test_indices_lie_in_their_table_and_texts_and_constants_are_those_that_the_graph_knows(run, tmp_path):
    nodes = [
        helper.make_node("LabelEncoder", ["word"], ["place"], domain="ai.onnx.ml", keys_strings=["a", "b"], values_int64s=[0, 1]),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Equal", ["rate", "known"], ["is_known"]),
        helper.make_node("Cast", ["is_known"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rows", "factor"], ["y"]),
        helper.make_node("Identity", ["place"], ["z"]),
    ]  # fmt: skip
    inputs = [("word", TensorProto.STRING, ["n"]), ("ids", TensorProto.INT64, ["n"]), ("rate", TensorProto.INT64, [])]
    outputs = [("y", TensorProto.FLOAT, ["n", 4]), ("z", TensorProto.INT64, ["n"])]
    made = graph(nodes, {"table": random(3, 4), "known": np.array(16000)}, inputs, outputs)
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    report = run([("spoil", {"share": 0.05})], saved(made, tmp_path / "source"))
    assert report.data["quality"]["relative"] == pytest.approx(0.05, rel=1e-3), "the factor is one, not zero"


def test_what_cannot_be_fed_or_run_here_is_unverified_with_the_reason(run, tmp_path):
    whole = graph([helper.make_node("SequenceAt", ["s", "first"], ["y"])], {"first": np.array(0)}, [], [
        ("y", TensorProto.FLOAT, [1])])  # fmt: skip
    whole.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1]))
    report = run([("spoil", {})], saved(whole, tmp_path / "sequence"))
    assert report.data["verdict"] == "unverified" and "is a sequence" in report.data["reasons"][0]
    custom = dense()
    custom.graph.node[2].domain = "mine"
    custom.opset_import.append(helper.make_opsetid("mine", 1))
    report = run([("spoil", {})], saved(custom, tmp_path / "custom"))
    assert report.data["verdict"] == "unverified" and "before does not open here either" in report.data["reasons"][0]


def test_a_graph_that_draws_numbers_is_not_called_worse(run, tmp_path):
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("RandomNormalLike", ["same"], ["n"]),
        helper.make_node("Add", ["x", "n"], ["y"]),
    ]
    ends = [("x", TensorProto.FLOAT, ["n", 8])], [("y", TensorProto.FLOAT, ["n", 8])]
    report = run([("onnx_peephole_optimizer", {})], saved(graph(nodes, {}, *ends), tmp_path / "source"))
    assert report.data["verdict"] == "unverified" and "differs by" in report.data["reasons"][0]


def test_the_verb_verify_adds_up_what_the_passes_may_lose(run, tmp_path):
    from coldpress.jobs.store import Store
    from coldpress.runs.engine import verify_pressed

    source = saved(convolutional(), tmp_path / "source")
    run([("spoil", {"share": 0.05}), ("onnx_peephole_optimizer", {})], source)
    found = verify_pressed(str(tmp_path / "out"), Workflow(str(source)), Store(tmp_path / "cache"))
    assert found.verdict == "verified" and found.numbers["relative_limit"] == pytest.approx(0.1001)
    assert found.numbers["relative"] == pytest.approx(0.05, rel=1e-3)
    changed = onnx.load(tmp_path / "out/model.onnx")
    [share] = [tensor for tensor in changed.graph.initializer if tensor.name == "share"]
    share.CopyFrom(numpy_helper.from_array(np.float32(2), "share"))
    onnx.save(changed, tmp_path / "out/model.onnx")
    again = verify_pressed(str(tmp_path / "out"), Workflow(str(source)), Store(tmp_path / "cache"))
    assert again.verdict == "worse than tolerance"
