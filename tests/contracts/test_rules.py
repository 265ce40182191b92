"""Every rule finds the fault it is for, and nothing in a graph that coldpress writes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from coldpress import parts
from coldpress.cli import app, main
from coldpress.models.model import Model
from coldpress.parts import Context, Rule
from coldpress.passes.press import Press
from coldpress.runs.lint import lint
from coldpress.target import Target, resolve_target

MICROSOFT = helper.make_opsetid("com.microsoft", 1)
GPU = resolve_target(device="gpu")


def saved(folder, nodes, weights, kind=TensorProto.FLOAT, columns=64):
    """A graph from x [rows, columns] to y."""
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", kind, ["rows", columns])],
        [helper.make_tensor_value_info("y", kind, ["rows", None])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), MICROSOFT], ir_version=10)
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def block_quantized(folder, bits, accuracy, zero_points=None, index=None):
    codes = np.zeros((32, 2, 32 * bits // 8), dtype=np.uint8)
    weights = {"codes": codes, "scales": np.ones((32, 2), dtype=np.float32)}
    names = ["x", "codes", "scales", "", ""]
    for place, name, value in ((3, "zero_points", zero_points), (4, "g_idx", index)):
        if value is not None:
            weights[name], names[place] = value, name
    facts = {"K": 64, "N": 32, "bits": bits, "block_size": 32, "accuracy_level": accuracy}
    node = helper.make_node("MatMulNBits", names, ["y"], name="product", domain="com.microsoft", **facts)
    return saved(folder, [node], weights)


def quantized(folder, activations, weights):
    """A product of values that come out of DequantizeLinear."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "x_zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "x_zero"], ["left"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["right"]),
        helper.make_node("MatMul", ["left", "right"], ["y"], name="product"),
    ]
    held = {"scale": np.float32(0.1), "x_zero": np.zeros((), activations), "w": np.zeros((64, 8), weights)}
    return saved(folder, nodes, held)


def cast_twice(folder):
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="down", to=half),
        helper.make_node("Cast", ["h"], ["y"], name="up", to=single),
    ]
    return saved(folder, nodes, {})


def twice(folder):
    weight = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["m"]), helper.make_node("MatMul", ["m", "b"], ["y"])]
    return saved(folder, nodes, {"a": weight, "b": weight.copy(), "unread": weight + 1})


def halves(folder):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return saved(folder, [node], {"w": np.ones((64, 8), dtype=np.float16)}, TensorProto.FLOAT16)


#: rule -> graphs with its fault, and the place of each finding
PLANTED = {
    "block_quantized_products": [
        (lambda folder: block_quantized(folder, 8, 0), ["product"]),
        (lambda folder: block_quantized(folder, 4, 4, np.full((32, 2), 8, np.float32)), ["product"]),
        (lambda folder: block_quantized(folder, 4, 4, index=np.zeros(64, np.int32)), ["product"]),
    ],
    "half_precision": [(halves, ["product"])],
    "int8_products": [
        (lambda folder: quantized(folder, np.int8, np.int8), ["product"]),
        (lambda folder: quantized(folder, np.uint8, np.uint8), ["product"]),
    ],
    "duplicate_weights": [(twice, ["b", "unread"])],
    "cast_chains": [(cast_twice, ["up"])],
}


@pytest.mark.parametrize("name", parts.names("rules"))
def test_a_rule_finds_each_fault_that_was_planted(name, tmp_path):
    assert issubclass(parts.find("rules", name), Rule) and parts.find("rules", name).__doc__
    for make, places in PLANTED[name]:
        found = [one.finding for one in lint(Model(make(tmp_path), "onnx", ""), Target()) if one.rule == name]
        assert sorted(finding.place for finding in found) == places
        assert all(finding.problem and finding.fix for finding in found)


def test_what_is_slow_on_a_processor_is_not_said_of_others(tmp_path):
    for make in (
        halves,
        lambda folder: block_quantized(folder, 8, 0),
        lambda folder: quantized(folder, np.int8, np.int8),
    ):
        assert not list(lint(Model(make(tmp_path), "onnx", ""), GPU))


def test_integers_that_stay_floats_at_a_low_level_are_said(tmp_path):
    model = quantized(tmp_path, np.uint8, np.int8)
    assert not list(lint(Model(model.parent, "onnx", ""), Target()))
    (tmp_path / "session_options.json").write_text('{"graph_optimization_level": "basic"}')
    [found] = lint(Model(model.parent, "onnx", ""), Target())
    assert "extended" in found.finding.problem


@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
def test_nothing_is_found_in_what_is_pressed(precision, tiny_model, tmp_path):
    made = Press(precision=precision).run(Model(tiny_model, "hf", "tiny"), Context(tmp_path))
    assert not list(lint(made, Target()))


def test_the_command_line_names_rule_place_and_fix(tmp_path, capsys):
    model = str(block_quantized(tmp_path, 8, 0))
    with pytest.raises(SystemExit) as end:
        main(["lint", model])
    said = capsys.readouterr().out
    assert end.value.code == 3
    assert "product" in said and "accuracy_level 4" in said and "[block_quantized_products]" in said
    listed = json.loads(CliRunner().invoke(app, ["lint", model, "--json"], standalone_mode=False).output)
    assert [(one["rule"], one["severity"]) for one in listed] == [("block_quantized_products", "error")]


def test_a_model_of_another_format_is_refused(tiny_model, capsys):
    with pytest.raises(SystemExit) as end:
        main(["lint", str(tiny_model)])
    assert end.value.code == 2 and "press it first" in capsys.readouterr().err
