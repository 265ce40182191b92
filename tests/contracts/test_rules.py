"""Every rule finds the fault it is for, and nothing in a graph that coldpress writes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from coldpress import parts
from coldpress.cli import app, main
from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import Context, Rule
from coldpress.passes.press import Press
from coldpress.runs.lint import lint
from coldpress.target import Target, resolve_target

MICROSOFT = helper.make_opsetid("com.microsoft", 1)
GPU = resolve_target(device="gpu")


def saved(folder, nodes, weights, kind=TensorProto.FLOAT, columns=64, given=None):
    """A graph from x [rows, columns] to y."""
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", kind, ["rows", columns])],
        [helper.make_tensor_value_info("y", given or kind, ["rows", None, None][: 3 if given else 2])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), MICROSOFT], ir_version=10)
    folder.mkdir(exist_ok=True, parents=True)
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


def language_model(folder):
    """An embedding, and a head that is the same turned over."""
    table = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["h"], name="embedding"),
        helper.make_node("MatMul", ["h", "head"], ["y"], name="head"),
    ]
    return saved(folder, nodes, {"table": table, "head": table.T.copy()}, TensorProto.INT64, given=TensorProto.FLOAT)


def norms(kind):
    """A layer norm, or one of the root mean square, in single operators."""

    def make(folder):
        nodes = [helper.make_node("ReduceMean", ["x", "last"], ["mean"]), helper.make_node("Sub", ["x", "mean"], ["c"])]
        centred = "c" if kind == "layer" else "x"
        nodes = nodes if kind == "layer" else []
        nodes += [
            helper.make_node("Pow", [centred, "two"], ["p"]),
            helper.make_node("ReduceMean", ["p", "last"], ["v"]),
            helper.make_node("Add", ["v", "epsilon"], ["e"]),
            helper.make_node("Sqrt", ["e"], ["s"]),
            helper.make_node("Div", [centred, "s"], ["d"], name="quotient"),
            helper.make_node("Mul", ["d", "w"], ["y" if kind == "rms" else "m"], name="scaled"),
        ]
        nodes += [helper.make_node("Add", ["m", "b"], ["y"], name="shifted")] if kind == "layer" else []
        row = np.linspace(0.5, 1.5, 64, dtype=np.float32)
        held = {"last": np.array([-1]), "two": np.float32(2), "epsilon": np.float32(1e-5), "w": row, "b": row}
        return saved(folder, nodes, held)

    return make


def attention(folder):
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["queries"]),
        helper.make_node("MatMul", ["x", "k"], ["keys"]),
        helper.make_node("Transpose", ["keys"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["queries", "turned"], ["scores"], name="scores"),
        helper.make_node("Div", ["scores", "root"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["shares"], name="softmax"),
        helper.make_node("MatMul", ["shares", "queries"], ["y"], name="values"),
    ]
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    return saved(folder, nodes, {"q": weight, "k": weight + 1, "root": np.float32(3)})


def constants(folder):
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"], name="sum"),
        helper.make_node("Mul", ["x", "sum"], ["y"], name="product"),
    ]
    return saved(folder, nodes, {"a": np.ones(64, np.float32), "b": np.ones(64, np.float32)})


def turned_twice(folder):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], name="there", perm=[1, 0]),
        helper.make_node("Transpose", ["t"], ["b"], name="back", perm=[1, 0]),
        helper.make_node("Exp", ["b"], ["y"]),
    ]
    return saved(folder, nodes, {})


def shapeless(folder):
    file = saved(folder, [helper.make_node("Relu", ["x"], ["y"])], {})
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, file)
    return file


def newer(folder):
    file = saved(folder, [helper.make_node("Relu", ["x"], ["y"])], {})
    model = onnx.load(file)
    model.ir_version = 99
    onnx.save(model, file)
    return file


def unknown_operator(folder):
    node = helper.make_node("Juggle", ["x"], ["y"], name="juggle", domain="com.circus")
    file = saved(folder, [node], {})
    model = onnx.load(file)
    model.opset_import.append(helper.make_opsetid("com.circus", 1))
    onnx.save(model, file)
    return file


def widened(folder):
    """From float16 to float32 and back, which changes no number."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Cast", ["r"], ["wide"], name="up", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["wide"], ["narrow"], name="down", to=TensorProto.FLOAT16),
        helper.make_node("Neg", ["narrow"], ["y"]),
    ]
    return saved(folder, nodes, {}, TensorProto.FLOAT16)


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
    "untied_embeddings": [(language_model, ["head"])],
    "spelled_out_norms": [(norms("layer"), ["shifted"]), (norms("rms"), ["quotient"])],
    "unfused_attention": [(attention, ["softmax"])],
    "unfolded_constants": [(constants, ["sum"])],
    "turned_twice": [(turned_twice, ["back"])],
    "missing_shapes": [(shapeless, ["x"])],
    "newer_than_runtime": [(newer, [""])],
    "provider_limits": [(unknown_operator, ["juggle"])],
}
#: faults that are put right, with inputs on which the outputs must stay
X = {"x": np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)}
MENDED = {
    "block_quantized_products": (lambda folder: block_quantized(folder, 8, 0), X),
    "duplicate_weights": (twice, X),
    "untied_embeddings": (language_model, {"x": np.arange(64).reshape(1, 64)}),
    "spelled_out_norms": (norms("layer"), X),
    "unfolded_constants": (constants, X),
    "turned_twice": (turned_twice, X),
    "cast_chains": (widened, {"x": X["x"].astype(np.float16)}),
}


@pytest.mark.parametrize("name", parts.names("rules"))
def test_a_rule_finds_each_fault_that_was_planted(name, tmp_path):
    assert issubclass(parts.find("rules", name), Rule) and parts.find("rules", name).__doc__
    for make, places in PLANTED[name]:
        found = [one.finding for one in lint(Model(make(tmp_path), "onnx", ""), Target()) if one.rule == name]
        assert sorted(finding.place for finding in found) == places
        assert all(finding.problem and finding.fix for finding in found)


@pytest.mark.parametrize("name", MENDED)
def test_a_remedy_keeps_the_outputs_and_leaves_nothing_to_find(name, tmp_path):
    make, feed = MENDED[name]
    file = make(tmp_path / "source")
    source = Model(file.parent, "onnx", "")
    (tmp_path / "out").mkdir()
    made = parts.find("passes", "mend")(rules=(name,)).run(source, Context(tmp_path / "out", Target(threads=1)))
    assert any(f"{name}: " in remark for remark in made.provenance.remarks)
    assert not [one for one in lint(made, Target()) if one.rule == name]
    before, after = (
        onnxruntime.InferenceSession(str(one / "model.onnx")).run(None, feed) for one in (file.parent, made.path)
    )
    share = 0.05 if name == "block_quantized_products" else 1e-5  # of few bits, whose inputs then have 8
    assert np.abs(after[0] - before[0]).max() <= share * np.abs(before[0]).max()


def test_limits_are_those_of_the_target(tmp_path):
    model = Model(block_quantized(tmp_path, 4, 4), "onnx", "")
    found = {one.finding.severity: one.finding for one in lint(model, resolve_target(device="npu", provider="QNN"))}
    assert "leaves all to the processor" in found["error"].problem and found["error"].place == "x"
    assert "operators of com.microsoft" in found["warning"].problem
    assert not list(lint(model, Target()))


def test_a_graph_is_too_new_for_an_old_runtime(tmp_path):
    model = Model(constants(tmp_path), "onnx", "")
    problems = [one.finding.problem for one in lint(model, Target(), "1.17.3") if one.rule == "newer_than_runtime"]
    assert problems == [
        "IR version 10; onnxruntime 1.17.3 loads up to 9",
        "opset 21; onnxruntime 1.17.3 loads up to 20",
    ]
    with pytest.raises(ColdpressError, match="'new' is no version"):
        list(lint(model, Target(), "new"))


def test_fix_writes_a_model_that_is_compared(tmp_path, capsys):
    model = str(block_quantized(tmp_path / "model", 8, 0).parent)
    with pytest.raises(SystemExit) as end:
        main(["lint", model, "--fix", "-o", str(tmp_path / "fixed"), "--cache_dir", str(tmp_path / "cache")])
    assert end.value.code == 0 and "accuracy_level 0" in capsys.readouterr().out
    assert not list(lint(Model(tmp_path / "fixed", "onnx", ""), Target()))
    assert json.loads((tmp_path / "fixed" / "report.json").read_text())["verdict"] == "verified"


def test_nothing_is_written_where_that_was_not_asked_for(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["lint", str(constants(tmp_path)), "-o", str(tmp_path / "fixed")])
    assert end.value.code == 2 and "--fix" in capsys.readouterr().err


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
