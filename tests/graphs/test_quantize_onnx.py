"""ONNX models of others, quantized: they compute what their codes stand for, and nothing else about them changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import coldpress
from coldpress.errors import ColdpressError
from coldpress.graphs.imported import fit
from coldpress.graphs.imported.folds import find_folds
from coldpress.graphs.imported.weights import find_weights
from coldpress.graphs.scoring import Decoder
from coldpress.models.model import Model
from coldpress.models.onnx_graphs import load_graph
from coldpress.parts import Context
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.pack import unpack, unpack_zero_points
from coldpress.target import Target
from coldpress.workflow import Step
from coldpress.workflow.calibration_data import with_data

Weights = dict[str, np.ndarray]
IDS = np.arange(3, 43, dtype=np.int64)[None] * 7 % 261


def random_weights(dtype: type = np.float32) -> Weights:
    random = np.random.default_rng(0)
    shapes = {"table": (512, 64), "q": (64, 96), "k": (64, 96), "up": (128, 96), "down": (128, 64)}
    return {name: (random.standard_normal(shape) / 8).astype(dtype) for name, shape in shapes.items()}


def network(weights: Weights, opset: int = 17) -> onnx.ModelProto:
    """Gather, two MatMuls of one input, Gemm with transB and a bias, Gemm with a bias ``[1, N]``."""
    dtype = helper.np_dtype_to_tensor_dtype(weights["q"].dtype)
    others = {
        "norm": np.linspace(0.1, 3, 64).astype(weights["q"].dtype),
        "up.bias": np.linspace(-1, 1, 128).astype(weights["q"].dtype),
        "down.bias": np.linspace(-1, 1, 64).astype(weights["q"].dtype)[None],
        "flat": np.array([-1, 96]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], "lookup"),
        helper.make_node("Mul", ["x", "norm"], ["n"], "scale"),
        helper.make_node("MatMul", ["n", "q"], ["a"], "/attn/q/MatMul"),
        helper.make_node("MatMul", ["n", "k"], ["b"], "/attn/k/MatMul"),
        helper.make_node("Mul", ["a", "b"], ["c"], "both"),
        helper.make_node("Reshape", ["c", "flat"], ["d"], "flatten"),
        helper.make_node("Gemm", ["d", "up", "up.bias"], ["e"], "first", transB=1),
        helper.make_node("Relu", ["e"], ["f"], "positive"),
        helper.make_node("Gemm", ["f", "down", "down.bias"], ["logits"], "second"),
    ]
    return model_of(nodes, {**weights, **others}, [("input_ids", TensorProto.INT64, [1, "t"])], dtype, opset=opset)


def model_of(
    nodes: list[Any], tensors: Weights, inputs: list[tuple[Any, ...]], dtype: int = TensorProto.FLOAT, **options: int
) -> onnx.ModelProto:
    """A graph whose last node gives the output, with ``axes`` (2) of any size; ``opset`` 17."""
    axes, opset = options.get("axes", 2), options.get("opset", 17)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(*facts) for facts in inputs],
        [helper.make_tensor_value_info(nodes[-1].output[0], dtype, ["any"] * axes)],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def saved(model: onnx.ModelProto, folder: Path, external: bool = False) -> Path:
    folder.mkdir(parents=True)
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 1024} if external else {}
    onnx.save(model, folder / "model.onnx", **options)
    return folder


@pytest.fixture
def quantize(tmp_path: Path) -> Callable[..., Model]:
    """Checks and runs the pass on a folder, in floats: accuracy level 0, a head of 4 bits."""

    def run(folder: Path, target: Target = Target(), **options: Any) -> Model:
        work = Step("quantize_onnx", with_data({"accuracy_level": 0, "head_bits": 4, **options})).make()
        scratch = tmp_path / f"quantized-{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        source = Model(folder, "onnx", "test")
        work.check(source, target)
        return work.run(source, Context(scratch, target))

    return run


def computed(model: Path, feeds: dict[str, np.ndarray], output: str | None = None) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output] if output else None, feeds)[0], np.float32)


def stored_values(file: Path) -> Weights:
    """What the codes in a graph stand for: the weight's name -> ``[rows, columns]``."""
    graph = onnx.load(file).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors |= {node.output[0]: tensors[name] for node in graph.node for name in node.input if name.endswith(".scales")}
    found = {}
    for node in graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        is_product = node.op_type == "MatMulNBits"
        facts = {attribute.name: attribute.i for attribute in node.attribute}
        inputs = [*node.input, "", ""]
        codes, scales, zeros = (inputs[1], *inputs[2:4]) if is_product else (inputs[0], *inputs[2:4])
        rows, blocks = tensors[scales].shape
        packed = tensors[codes].reshape(rows, blocks, -1)
        zero_points = unpack_zero_points(tensors[zeros], blocks, facts["bits"]) if zeros else None
        grid = Grid(facts["bits"], facts["block_size"], zero_points is None)
        made = Codes(unpack(packed, facts["bits"]), tensors[scales].astype(np.float32), zero_points, grid)
        found[codes.split(".codes")[0]] = dequantize(made, blocks * facts["block_size"])
    return found


TURNED = ("q", "k", "down")  # stored with the inputs first


def as_stored(values: Weights, dtype: type = np.float32) -> Weights:
    return {name: (array.T if name in TURNED else array).astype(dtype) for name, array in values.items()}


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("precision", "symmetric"), [("int4", False), ("int4", True), ("int8", None)])
def test_the_result_computes_what_its_codes_stand_for(tmp_path, quantize, opset, precision, symmetric):
    source = saved(network(random_weights(), opset), tmp_path / "source", external=opset == 21)
    level = 0 if precision == "int4" else 4
    made = quantize(source, precision=precision, symmetric=symmetric, accuracy_level=level)
    file = made.path / "model.onnx"
    values = stored_values(file)
    assert set(values) == {"table", "q", "k", "up", "down"}
    reference = saved(network(as_stored(values), opset), tmp_path / "reference") / "model.onnx"
    wanted, found = (computed(path, {"input_ids": IDS}) for path in (reference, file))
    np.testing.assert_allclose(found, wanted, atol=1e-4 if level == 0 else 0.05 * np.abs(wanted).max())
    for name, weight in random_weights().items():
        error = np.abs(as_stored(values)[name] - weight).max()
        assert 0 < error < (0.1 if precision == "int4" else 0.01)


def test_scales_are_halves_unless_floats_are_asked_for(tmp_path, quantize):
    source = saved(network(random_weights()), tmp_path / "source")
    sizes = {}
    for kind, number in (("float16", TensorProto.FLOAT16), ("float32", TensorProto.FLOAT)):
        file = quantize(source, scale_dtype=kind).path / "model.onnx"
        graph = onnx.load(file).graph
        assert {one.data_type for one in graph.initializer if one.name.endswith(".scales")} == {number}
        sizes[kind] = file.with_name("model.onnx.data").stat().st_size
        reference = saved(network(as_stored(stored_values(file))), tmp_path / kind) / "model.onnx"
        wanted, found = (computed(path, {"input_ids": IDS}) for path in (reference, file))
        np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
    assert sizes["float16"] < sizes["float32"]


def test_halves_stay_halves(tmp_path, quantize):
    source = saved(network(random_weights(np.float16)), tmp_path / "source")
    made = quantize(source)
    file = made.path / "model.onnx"
    graph = onnx.load(file).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[name] for name in kinds if name.endswith((".scales", ".bias"))} == {TensorProto.FLOAT16}
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    halves = network({name: array.astype(np.float16) for name, array in as_stored(stored_values(file)).items()})
    reference = saved(halves, tmp_path / "reference") / "model.onnx"
    wanted, found = (computed(path, {"input_ids": IDS}) for path in (reference, file))
    np.testing.assert_allclose(found, wanted, atol=4e-3 * np.abs(wanted).max())


def test_bfloat16_scales_are_those_that_the_codes_were_chosen_for(tmp_path, quantize):
    from ml_dtypes import bfloat16

    source = saved(network(random_weights(bfloat16)), tmp_path / "source")
    made = quantize(source, accuracy_level=4, precision="int8")
    graph = onnx.load(made.path / "model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[name] for name in kinds if name.endswith(".scales")} == {TensorProto.BFLOAT16}
    for name, values in as_stored(stored_values(made.path / "model.onnx")).items():
        weight = random_weights(bfloat16)[name].astype(np.float32)
        assert np.linalg.norm(values - weight) < 0.005 * np.linalg.norm(weight)


def test_everything_else_stays(tmp_path, quantize):
    before = network(random_weights())
    made = quantize(saved(before, tmp_path / "source"))
    after = onnx.load(made.path / "model.onnx", load_external_data=False)
    assert (after.ir_version, {entry.domain: entry.version for entry in after.opset_import}) == (
        before.ir_version,
        {"": 17, "com.microsoft": 1},
    )
    added = [node.name for node in after.graph.node if node.name not in {node.name for node in before.graph.node}]
    casts = [f"{name}.scales.cast" for name in ("table", "q", "k", "up", "down")]
    assert set(added) == {"second.bias", *casts}  # a bias of shape [1, 64], which MatMulNBits does not add
    assert {node.name for node in before.graph.node} <= {node.name for node in after.graph.node}
    assert list(after.graph.input) == list(before.graph.input) and list(after.graph.output) == list(before.graph.output)
    first = next(node for node in after.graph.node if node.name == "first")
    assert first.input[5] == "up.bias"
    assert not {"table", "q", "k", "up", "down"} & {tensor.name for tensor in after.graph.initializer}
    onnx.checker.check_model(str(made.path / "model.onnx"), full_check=False)


def test_a_file_becomes_model_onnx_and_a_folder_keeps_its_other_files(tmp_path, quantize):
    source = saved(network(random_weights()), tmp_path / "source", external=True)
    (source / "tokenizer.json").write_text("{}")
    (source / "README.md").write_text("about the float model")
    (source / "model.onnx.data").write_text("left by another model")
    (source / "second").mkdir()
    onnx.save(network(random_weights()), source / "second" / "other.onnx")
    made = quantize(source)
    assert {file.relative_to(made.path).as_posix() for file in made.path.rglob("*") if file.is_file()} == {
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "second/other.onnx",
        "second/other.onnx.data",
    }
    assert len(made.provenance.layers) == 10
    np.testing.assert_array_equal(
        computed(made.path / "model.onnx", {"input_ids": IDS}),
        computed(made.path / "second" / "other.onnx", {"input_ids": IDS}),
    )
    alone = quantize(source / "second" / "other.onnx")
    assert {file.name for file in alone.path.iterdir()} == {"model.onnx", "model.onnx.data"}


def test_the_report_tells_of_each_layer(tmp_path, quantize):
    made = quantize(
        saved(network(random_weights()), tmp_path / "source"), algorithm="hqq", head_bits=8, accuracy_level=4
    )
    layers = {layer.name: layer for layer in made.provenance.layers}
    assert {name: (layer.role, layer.bits) for name, layer in layers.items()} == {
        "table": ("embedding", 4),
        "q": ("linear", 4),
        "k": ("linear", 4),
        "up": ("linear", 4),
        "down": ("head", 8),
    }
    assert {layer.algorithm for layer in layers.values()} == {"hqq"}
    weight = random_weights()["q"]
    error = np.linalg.norm(stored_values(made.path / "model.onnx")["q"].T - weight) / np.linalg.norm(weight)
    assert layers["q"].relative_error == pytest.approx(error, rel=1e-4)
    assert layers["q"].bytes == 96 * 64 // 2 + 96 * 2 * 2 + 96, "scales are halves"
    assert made.provenance.precision == "int4" and not made.provenance.remarks


def test_what_stays_float_is_said(tmp_path, quantize):
    weights = random_weights()
    model = network({**weights, "k": weights["k"]})
    graph = model.graph
    graph.node.append(helper.make_node("ReduceMax", ["k"], ["most"], "watch", keepdims=0))
    graph.output.append(helper.make_tensor_value_info("most", TensorProto.FLOAT, []))
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["y"], "hidden")],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights["q"], "inner")],
    )
    graph.node.append(helper.make_node("If", ["yes"], ["z"], "choice", then_branch=inner, else_branch=inner))
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    made = quantize(saved(model, tmp_path / "source"), modules_to_not_convert=("fir*",), lm_head=False)
    assert set(stored_values(made.path / "model.onnx")) == {"table", "q"}
    remarks = "\n".join(made.provenance.remarks)
    for reason in (
        "also read by other nodes: k",
        "modules_to_not_convert: up",
        "lm_head is off: down",
        "inside If, Loop, Scan or a function: hidden",
    ):
        assert reason in remarks
    assert computed(made.path / "model.onnx", {"input_ids": IDS}).shape == (40, 64)


def test_small_and_odd_weights_stay_float(tmp_path, quantize):
    random = np.random.default_rng(0)
    shapes = {"odd": (100, 96), "good": (96, 64), "small": (64, 8), "batch": (1, 8, 256)}
    names = list(shapes)
    nodes = [
        helper.make_node("MatMul", [f"x{place}", name], [f"x{place + 1}"], f"node{place}")
        for place, name in enumerate(names)
    ]
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = model_of(nodes, tensors, [("x0", TensorProto.FLOAT, [3, 100])])
    made = quantize(saved(model, tmp_path / "source"))
    assert [layer.name for layer in made.provenance.layers] == ["good"]
    remarks = "\n".join(made.provenance.remarks)
    assert "no block divides their inputs: odd" in remarks and "fewer than 1,024 weights: small" in remarks
    assert "no matrices of float32, float16 or bfloat16: batch" in remarks


def test_a_position_table_stays_float(tmp_path, quantize):
    weights = {**random_weights(), "table": np.ones((4096, 64), np.float32)}
    model = network(weights)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "positions"))
    model.graph.node.append(helper.make_node("Gather", ["positions", "input_ids"], ["p"], "place"))
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    made = quantize(saved(model, tmp_path / "source"))
    assert "positions" not in stored_values(made.path / "model.onnx")
    assert "small tables, of positions or types: positions (float)" in made.provenance.remarks


# A decoder that coldpress wrote itself


@pytest.fixture(scope="module")
def decoder(tiny_model, tmp_path_factory) -> Path:
    """The tiny chat model in float32, its embedding tied to its head."""
    cache, output = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("float") / "fp32"
    coldpress.optimize(tiny_model, output, precision="fp32", no_verify=True, cache_dir=cache)
    return output


@pytest.mark.parametrize("options", [{}, {"algorithm": "gptq", "num_samples": 2, "max_seq_len": 32}])
def test_a_decoder_computes_what_its_codes_stand_for(decoder, quantize, tmp_path, options):
    made = quantize(decoder, **options)
    values = stored_values(made.path / "model.onnx")
    reference = tmp_path / "reference"
    shutil.copytree(decoder, reference)
    model = onnx.load(reference / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name in values:
            array = values.pop(tensor.name)
            turned = array.T if tensor.name.endswith("_t") else array
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), tensor.name))
    assert not values
    onnx.save(model, reference / "model.onnx")
    wanted, found = (Decoder(folder, threads=1).logits(IDS[0]) for folder in (reference, made.path))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_tied_table_shares_its_codes_with_the_head(decoder, quantize):
    made = quantize(decoder)
    graph = onnx.load(made.path / "model.onnx", load_external_data=False).graph
    places = {
        tensor.name: [entry.value for entry in tensor.external_data if entry.key in ("offset", "length")]
        for tensor in graph.initializer
    }
    name = "model.embed_tokens.weight"
    assert places[f"{name}.codes"] == places[f"{name}.codes.lookup"]
    assert [layer.role for layer in made.provenance.layers if layer.name == "model.embed_tokens"] == ["head"]
    apart = quantize(decoder, embeddings=False)
    assert "embeddings are off, and the head is tied to one: model.embed_tokens (float)" in apart.provenance.remarks


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "best"])
def test_calibrated_layers_are_no_worse_than_rounded_ones(decoder, quantize, algorithm):
    made = quantize(decoder, algorithm=algorithm, num_samples=3, max_seq_len=64)
    layers = made.provenance.layers
    assert made.provenance.calibration.tokens == 192
    for layer in layers:
        assert layer.output_error <= layer.rtn_output_error, layer.name
        assert layer.tokens == 192
    scaled = {layer.name.rpartition(".")[2] for layer in layers if layer.alpha is not None}
    assert scaled == (set() if algorithm == "gptq" else {"qkv_proj", "gate_up_proj"})


def test_scales_lie_in_the_norms(decoder, quantize):
    gpu = Target("gpu", "CUDAExecutionProvider")
    options = {"precision": "int8", "num_samples": 2, "max_seq_len": 64}
    made = quantize(decoder, gpu, algorithm="awq", **options)
    assert any(layer.alpha for layer in made.provenance.layers)
    wanted = Decoder(decoder, threads=1).logits(IDS[0])
    missed = Decoder(made.path, threads=1).logits(IDS[0]) - wanted
    assert np.linalg.norm(missed) < 0.05 * np.linalg.norm(wanted)


def norm_of(kind: str) -> list[Any]:
    """Nodes that make ``n`` of ``x`` with the constants ``norm`` and ``shift``."""
    contrib = {"domain": "com.microsoft"}
    return {
        "LayerNormalization": [helper.make_node(kind, ["x", "norm", "shift"], ["n"], "ln", axis=-1)],
        "SkipLayerNormalization": [helper.make_node(kind, ["x", "x", "norm", "shift"], ["n"], "ln", **contrib)],
        "SkipSimplifiedLayerNormalization": [helper.make_node(kind, ["x", "x", "norm"], ["n"], "ln", **contrib)],
        "Mul": [helper.make_node("Mul", ["x", "norm"], ["n"], "mul")],
        "Mul and Add": [
            helper.make_node("Mul", ["norm", "x"], ["m"], "mul"),
            helper.make_node("Add", ["m", "shift"], ["n"], "add"),
        ],
    }[kind]


def behind_a_norm(kind: str, *more: Any) -> onnx.ModelProto:
    random = np.random.default_rng(1)
    shapes = {"norm": 64, "shift": 64, "left": (64, 32), "right": (64, 32)}
    nodes = [
        *norm_of(kind),
        *(helper.make_node("MatMul", ["n", name], [f"{name}.out"], f"by_{name}") for name in ("left", "right")),
        *more,
        helper.make_node("Concat", ["left.out", "right.out"], ["y"], "join", axis=-1),
    ]
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = model_of(nodes, tensors, [("x", TensorProto.FLOAT, [1, "t", 64])], axes=3)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


KINDS = ("LayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Mul", "Mul and Add")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fold_changes_nothing_in_floats(tmp_path, kind):
    source = saved(behind_a_norm(kind), tmp_path / "source") / "model.onnx"
    model = load_graph(source)
    [fold] = find_folds(find_weights(model).weights)
    assert [weight.name for weight in fold.weights] == ["left", "right"]
    scales = np.linspace(0.2, 5, 64).astype(np.float32)
    applied = fold.divide(model.graph, scales)
    np.testing.assert_allclose(applied, scales, rtol=1e-5)
    for weight in fold.weights:
        scaled = np.array(weight.tensor.numpy()) * applied[:, None]
        weight.value.const_value = ir.tensor(scaled, name=weight.name)
    ir.save(model, tmp_path / "folded.onnx")
    feeds = {"x": np.random.default_rng(2).standard_normal((1, 5, 64)).astype(np.float32)}
    np.testing.assert_allclose(computed(tmp_path / "folded.onnx", feeds), computed(source, feeds), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_others_read_is_not_scaled(tmp_path, kind):
    reader = helper.make_node("Add", ["n", "n"], ["z"], "residual")
    model = load_graph(saved(behind_a_norm(kind, reader), tmp_path / "source") / "model.onnx")
    assert find_folds(find_weights(model).weights) == []


def test_runs_in_groups_give_the_same_bytes(decoder, quantize, tmp_path, monkeypatch):
    source = saved(network(random_weights()), tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(decoder / name, source / name)
    made = []
    for most in (fit.MOST_GRAM_BYTES, 1):
        monkeypatch.setattr(fit, "MOST_GRAM_BYTES", most)
        made.append(quantize(source, algorithm="best", num_samples=2, max_seq_len=32))
    files = [(model.path / name).read_bytes() for model in made for name in ("model.onnx", "model.onnx.data")]
    assert files[:2] == files[2:]
    assert [layer.name for layer in made[1].provenance.layers if layer.alpha is not None] == ["q", "k"]


# Inputs of the user's own


def vision(seed: int = 0) -> tuple[onnx.ModelProto, Weights]:
    """Pixels to features, the channels of very different size."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((64, 48)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["pixels", "weight"], ["features"], "project")]
    mixed = random.standard_normal((64, 64)) @ np.diag(np.linspace(0.1, 4, 64)) / 8
    pixels = (random.standard_normal((8, 100, 64)) @ mixed).astype(np.float32)
    return model_of(nodes, {"weight": weight}, [("pixels", TensorProto.FLOAT, ["n", 100, 64])], axes=3), {
        "pixels": pixels
    }


def test_arrays_calibrate_what_takes_no_text(tmp_path, quantize):
    model, arrays = vision()
    source = saved(model, tmp_path / "source")
    np.savez(tmp_path / "inputs.npz", **arrays)
    wanted = computed(source / "model.onnx", arrays)
    errors = {}
    for algorithm in ("rtn", "gptq", "best"):
        data = {} if algorithm == "rtn" else {"data_files": (str(tmp_path / "inputs.npz"),)}
        made = quantize(source, algorithm=algorithm, **data)
        missed = computed(made.path / "model.onnx", arrays) - wanted
        errors[algorithm] = np.linalg.norm(missed) / np.linalg.norm(wanted)
        for layer in made.provenance.layers:
            assert (layer.output_error or errors[algorithm]) == pytest.approx(errors[algorithm], rel=0.01)
    assert errors["best"] <= errors["gptq"] < 0.8 * errors["rtn"]
    assert made.provenance.calibration.text == "inputs.npz, 8 samples"


def test_data_that_does_not_fit_is_refused_before_any_work(tmp_path, quantize):
    model, arrays = vision()
    source = saved(model, tmp_path / "source")
    for data, words, hint in (
        ((), "takes pixels, not a text alone", "kquant"),
        (("none.npz",), "there is no file 'none.npz'", ""),
        ((_npz(tmp_path / "a.npz", image=arrays["pixels"]),), "no array 'pixels'; found: image", "inputs are pixels"),
        ((_npz(tmp_path / "b.npz", pixels=np.zeros((0, 100, 64))),), "at least one", "first axis"),
    ):
        with pytest.raises(ColdpressError) as caught:
            quantize(source, algorithm="gptq", data_files=data)
        assert words in caught.value.message and hint in (caught.value.hint or "")


def _npz(file: Path, **arrays: np.ndarray) -> str:
    np.savez(file, **arrays)
    return str(file)


def test_a_fixed_length_is_named(decoder, quantize, tmp_path):
    source = saved(_fixed_length(network(random_weights())), tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(decoder / name, source / name)
    with pytest.raises(ColdpressError) as caught:
        quantize(source, algorithm="gptq", max_seq_len=32, num_samples=2)
    assert "--max_seq_len 16" in caught.value.hint
    made = quantize(source, algorithm="gptq", max_seq_len=16, num_samples=2)
    assert made.provenance.calibration.windows == 2


def _fixed_length(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16
    return model


def test_activations_that_are_not_finite_name_the_place(tmp_path, quantize):
    model, arrays = vision()
    arrays["pixels"][3, 0, 0] = np.inf
    source = saved(model, tmp_path / "source")
    with pytest.raises(ColdpressError, match=r"'pixels' in model\.onnx is not finite"):
        quantize(source, algorithm="awq", data_files=(_npz(tmp_path / "a.npz", **arrays),))


# Requests that are wrong


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({"precision": "int3"}, "no ONNX kernel reads 3 bits", "int4"),
        ({"precision": "int5"}, "unknown precision 'int5'", "int"),
        ({"precision": "int8"}, "100 times slower", "accuracy_level 4"),
        ({"head_bits": 8}, "100 times slower", "--head_bits 4"),
        ({"precision": "int2", "accuracy_level": 4, "block_size": 16, "lm_head": False}, "2-bit", "block_size 32"),
        ({"modules_to_not_convert": ("fisrt",)}, "'fisrt' matches no node or weight", "glob"),
        ({"data_files": ("a.txt",)}, "data has no effect with kquant", "gptq"),
        ({"algorithm": "gptq", "data_files": ("a.npz",), "max_seq_len": 3}, "max_seq_len has no effect", "leave out"),
        ({"algorithm": "gptq", "data_files": ("a.npz", "b.txt")}, "a.npz cannot be joined", "alone"),
    ],
)
def test_wrong_requests_are_refused_with_a_way_out(tmp_path, quantize, options, words, hint):
    source = saved(network(random_weights()), tmp_path / "source")
    with pytest.raises(ColdpressError) as caught:
        quantize(source, **options)
    assert words in caught.value.message and hint in caught.value.hint


def test_a_quantized_model_is_left_alone(tmp_path, quantize):
    made = quantize(saved(network(random_weights()), tmp_path / "source"))
    with pytest.raises(ColdpressError, match="nothing to quantize"):
        quantize(made.path)
    partly = quantize(tmp_path / "source", modules_to_not_convert=("up",))
    before, again = stored_values(partly.path / "model.onnx"), quantize(partly.path, algorithm="rtn")
    after = stored_values(again.path / "model.onnx")
    assert set(after) - set(before) == {"up"}
    assert all(np.array_equal(after[name], values) for name, values in before.items())


def test_nothing_to_quantize_says_which_weights_there_were(tmp_path, quantize):
    tensors = {"w": np.ones((16, 8), np.float32)}
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "only")], tensors, [("x", TensorProto.FLOAT, [1, 16])]
    )
    with pytest.raises(ColdpressError, match=r"nothing to quantize in .*fewer than 1,024 weights: w"):
        quantize(saved(model, tmp_path / "source"))


def test_damaged_models_are_named(tmp_path, quantize):
    source = saved(network(random_weights()), tmp_path / "cut", external=True)
    (source / "weights.bin").write_bytes((source / "weights.bin").read_bytes()[:1000])
    with pytest.raises(ColdpressError, match=r"weights.bin is cut off: tensor"):
        quantize(source)
    (source / "weights.bin").unlink()
    with pytest.raises(ColdpressError, match=r"which is missing"):
        quantize(source)
    (source / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(ColdpressError, match=r"cannot be read as an ONNX model"):
        quantize(source)
