"""Int8 with ONNX Runtime's quantizers: the same function nearly, what was chosen, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from coldpress.errors import ColdpressError
from coldpress.graphs.imported import int8
from coldpress.parts import DataSource
from tests.conftest import write_tokenizer
from tests.onnx_models import computed, convolutional, dense, files, graph, is_near, operators, random, run_pass, saved

DYNAMIC, STATIC = "onnx_dynamic_quantization", "onnx_static_quantization"
X = np.random.default_rng(7).standard_normal((5, 8)).astype(np.float32)
IMAGES = np.random.default_rng(7).standard_normal((2, 3, 12, 16)).astype(np.float32)


def said_of(made) -> list[str]:
    """The remarks but for the one that depends on the processor."""
    return [one for one in made.provenance.remarks if "7 bits" not in one]


def tensors(folder):
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(folder / "model.onnx").graph.initializer}


@pytest.mark.parametrize("external", [False, True])
def test_dynamic_products_are_near_and_other_files_come_along(tmp_path, external):
    source = saved(dense(), tmp_path / "source", external)
    made = run_pass(DYNAMIC, source)
    assert operators(made.path)["MatMulInteger"] == 2
    assert files(made.path) == {"model.onnx", "vocabulary.txt"}
    assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X}), 0.03)
    assert all(values.dtype != np.uint8 for values in tensors(made.path).values() if values.size > 96), "signed weights"
    assert made.provenance.precision == "int8" and said_of(made) == ["int8: 1 Gemm, 1 MatMul"]
    assert files(source) == {"model.onnx", "vocabulary.txt", *(["weights.bin"] if external else [])}


@pytest.mark.parametrize("name", [DYNAMIC, STATIC])
def test_a_weight_that_is_no_number_is_named(tmp_path, name):
    model = dense()
    weight = next(one for one in model.graph.initializer if len(one.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = np.inf
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ColdpressError, match=f"tensor '{weight.name}' of .* holds NaN or infinity"):
        run_pass(name, saved(model, tmp_path / "source"))


@pytest.mark.parametrize("name", [DYNAMIC, STATIC])
def test_weights_that_are_nodes_are_quantized(tmp_path, name):
    model = dense()
    constants = [helper.make_node("Constant", [], [one.name], value=one) for one in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    source = saved(model, tmp_path / "source")
    made = run_pass(name, source)
    assert "int8: 1 Gemm, 1 MatMul" in made.provenance.remarks
    assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X}), 0.1)


def test_a_scale_for_each_output_unless_one_is_asked_for(tmp_path):
    source = saved(dense(), tmp_path / "source")
    scales = {option: max(values.size for name, values in tensors(run_pass(DYNAMIC, source, per_channel=option).path).items()
                          if name.endswith("_scale")) for option in (True, False)}  # fmt: skip
    assert scales == {True: 96, False: 1}


def test_nodes_are_chosen_by_globs(tmp_path):
    source = saved(dense(), tmp_path / "source")
    made = run_pass(DYNAMIC, source, nodes_to_exclude=("second/*",))
    assert operators(made.path)["MatMulInteger"] == 1
    assert said_of(made) == ["int8: 1 MatMul"]
    only = run_pass(DYNAMIC, source, nodes_to_quantize=("second/Gemm",))
    assert said_of(only) == ["int8: 1 Gemm"]


def test_the_attention_of_onnx_is_not_taken_for_that_of_microsoft(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], "query"),
        helper.make_node("Attention", ["q", "q", "q"], ["y"], "attention", q_num_heads=2, kv_num_heads=2),
    ]
    ends = [("x", TensorProto.FLOAT, [1, "t", 16])], [("y", TensorProto.FLOAT, [1, "t", 16])]
    source = saved(graph(nodes, {"w": random(16, 16)}, *ends, opset=23), tmp_path / "source")
    made = run_pass(DYNAMIC, source)
    feed = {"x": np.random.default_rng(1).standard_normal((1, 6, 16)).astype(np.float32)}
    assert operators(made.path)["Attention"] == 1
    assert is_near(computed(source, feed), computed(made.path, feed), 0.03)


@pytest.mark.parametrize("options", [{}, {"calibrate_method": "entropy"}, {"calibrate_method": "percentile",
                         "percentile": 99.9}, {"moving_average": 0.5}, {"quant_format": "qoperator"}])  # fmt: skip
def test_static_convolutions_are_near(tmp_path, options, capsys):
    source = saved(convolutional(), tmp_path / "source")
    made = run_pass(STATIC, source, num_samples=4, **options)
    is_qdq = options.get("quant_format") != "qoperator"
    assert operators(made.path)["DequantizeLinear" if is_qdq else "QLinearConv"] >= 2
    assert is_near(computed(source, {"x": IMAGES}), computed(made.path, {"x": IMAGES}), 0.25)
    assert any("random numbers" in line for line in made.provenance.remarks)
    assert capsys.readouterr().out == "", "standard output belongs to the user's data"


def test_activations_of_sixteen_bits_lose_less(tmp_path):
    source = saved(dense(), tmp_path / "source")
    eight, sixteen = (
        run_pass("onnx_static_quantization", source, num_samples=2, activation_type=kind)
        for kind in ("uint8", "uint16")
    )
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    [exact], [near], [far] = (computed(folder, {"x": x}) for folder in (source, sixteen.path, eight.path))
    assert np.abs(near - exact).max() < np.abs(far - exact).max()
    assert any("16 bits become no integer products" in line for line in sixteen.provenance.remarks)
    assert any(values.dtype == np.uint16 for values in tensors(sixteen.path).values())


def test_a_tensor_is_quantized_as_it_is_named(tmp_path):
    source = saved(dense(), tmp_path / "source")
    own = {"c": ({"quant_type": "uint16"},)}
    made = run_pass("onnx_static_quantization", source, num_samples=1, tensor_quant_overrides=own)
    zeros = {name: values.dtype for name, values in tensors(made.path).items() if "zero_point" in name}
    assert {str(kind) for name, kind in zeros.items() if name.startswith("c_")} == {"uint16"}
    assert np.dtype(np.uint8) in zeros.values()
    for wrong, message in (({"quant_type": "uint5"}, "quant_type of 'c'"), ({"type": "uint8"}, "'c' has 'type'")):
        with pytest.raises(ColdpressError, match=message):
            run_pass("onnx_static_quantization", source, tensor_quant_overrides={"c": (wrong,)})


def test_ranges_come_from_all_batches_of_the_data(tmp_path, lab_parts):
    source = saved(dense(), tmp_path / "source")
    data = DataSource("ramp", {"peaks": [1.0, 4.0, 2.0]})
    made = run_pass(STATIC, source, data=data)
    assert tensors(made.path)["x_scale"] == pytest.approx(4.0 / 255)
    assert made.provenance.calibration.text == "data of kind ramp"
    assert not any("random" in line for line in made.provenance.remarks)
    fewer = run_pass(STATIC, source, data=data, num_samples=1)
    assert tensors(fewer.path)["x_scale"] == pytest.approx(1.0 / 255)


def test_models_of_text_are_calibrated_on_text(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], "lookup"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "head"),
    ]
    ends = [("input_ids", TensorProto.INT64, ["batch", "t"])], [("y", TensorProto.FLOAT, ["batch", "t", 16])]
    source = saved(graph(nodes, {"table": random(512, 32), "w": random(32, 16)}, *ends), tmp_path / "source")
    write_tokenizer(source)
    made = run_pass(STATIC, source, num_samples=4, max_seq_len=32)
    assert made.provenance.calibration.text.startswith("coldpress's own text")
    feed = {"input_ids": np.arange(5, 45)[None]}
    assert is_near(computed(source, feed), computed(made.path, feed), 0.1)


def test_a_weight_that_two_products_share_serves_both(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "one", transB=1),
        helper.make_node("Gemm", ["a", "w"], ["y"], "two"),
    ]
    ends = [("x", TensorProto.FLOAT, ["batch", 8])], [("y", TensorProto.FLOAT, ["batch", 8])]
    source = saved(graph(nodes, {"w": random(12, 8)}, *ends), tmp_path / "source")
    made = run_pass(DYNAMIC, source)
    assert said_of(made) == ["int8: 2 Gemm"]
    assert is_near(computed(source, {"x": X}), computed(made.path, {"x": X}), 0.05)


@pytest.mark.parametrize("name", [DYNAMIC, STATIC])
def test_what_cannot_become_int8_is_refused_before_any_work(tmp_path, name):
    source = saved(dense(), tmp_path / "source")
    made = run_pass(name, source)
    for folder, options, message in (
        (made.path, {}, "quantized already"),
        (source, {"nodes_to_exclude": ("frist/*",)}, "matches no node"),
        (source, {"op_types_to_quantize": ("Conv",)}, "no node of model.onnx can become int8"),
        (source, {"op_types_to_exclude": ("MatMul", "Gemm")}, "no node of model.onnx can become int8"),
        (source, {"nodes_to_exclude": ("*",)}, "no node of model.onnx can become int8"),
    ):
        with pytest.raises(ColdpressError, match=message):
            run_pass(name, folder, **options)


@pytest.mark.parametrize(
    "options",
    [{"percentile": 99.0}, {"calibrate_method": "entropy", "moving_average": 0.1}, {"num_samples": 0},
     {"calibrate_method": "percentile", "percentile": 20.0}, {"moving_average": 2.0}],
)  # fmt: skip
def test_options_without_effect_or_sense_are_refused(tmp_path, options):
    with pytest.raises(ColdpressError) as caught:
        run_pass(STATIC, saved(dense(), tmp_path / "source"), **options)
    assert next(name for name in options if name != "calibrate_method") in caught.value.message


def test_data_that_does_not_fit_is_said_so(tmp_path, lab_parts):
    with pytest.raises(ColdpressError, match="on batch 0 of the calibration data"):
        run_pass(STATIC, saved(dense(), tmp_path / "source"), data=DataSource("ramp", {"size": 9}))


@pytest.mark.parametrize("name", [DYNAMIC, STATIC])
def test_weights_have_seven_bits_where_products_overflow(tmp_path, name, monkeypatch):
    source = saved(dense(), tmp_path / "source")

    def largest(overflows: bool, **options) -> tuple[int, bool]:
        monkeypatch.setattr(int8, "overflows", lambda: overflows)
        made = run_pass(name, source, **options)
        weights = [one.astype(int) for one in tensors(made.path).values() if one.dtype == np.int8 and one.size >= 96]
        return max(abs(one).max() for one in weights), any("7 bits" in one for one in made.provenance.remarks)

    assert largest(True) == (64, True)
    assert largest(False) == (127, False)
    assert largest(True, reduce_range=False) == (127, False)
    assert largest(False, reduce_range=True) == (64, False)


def test_products_overflow_as_the_largest_of_onnxruntime_does():
    """What two sums of 16 bits hold is less than the products of 255 and 127: a float64 sum of them tells."""
    size = 32
    weight = numpy_helper.from_array(np.full((size, 4), 127, np.int8), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 4])],
    )
    model = helper.make_model(
        helper.make_graph([node], "g", *ends, [weight]), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"x": np.full((2, size), 255, np.uint8)})
    assert int8.overflows() == bool((found != size * 255.0 * 127.0).any())
