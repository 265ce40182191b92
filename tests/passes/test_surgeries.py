"""Each surgery on a graph that has its pattern: what becomes of the operators, and that the outputs stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import coldpress
from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.parts.surgery import Operation, Surgery
from coldpress.quant.grid import Grid
from coldpress.quant.pack import pack
from coldpress.quant.rtn import rtn
from tests.onnx_models import computed, convolutional, dense, graph, operators, random, run_pass, saved

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
X = np.random.default_rng(5).standard_normal((3, 8)).astype(np.float32)
IDS = np.array([[0, 5, 2], [7, 7, 1]])


@dataclass(frozen=True)
class Example:
    """A graph, what is done to it, and how many nodes of some operators there are afterwards."""

    make: Callable[[], onnx.ModelProto]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)
    feed: Mapping[str, np.ndarray] = field(default_factory=lambda: {"x": X})
    tolerance: float = 1e-5
    external: bool = False


def one_input(nodes, tensors, columns=8, opset=17, rank=2, wide="n"):
    """From ``x [batch, ..., 8]`` to ``y``."""
    axes = ["batch", *["length"] * (rank - 2)]
    ends = [("x", FLOAT, [*axes, columns])], [("y", FLOAT, [*axes, wide])]
    return graph(nodes, tensors, *ends, opset=opset)


def gemms():
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], "turned", transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["a", "v"], ["c"], "plain"),
        helper.make_node("Gemm", ["c", "w", "b"], ["y"], "again", transB=1),
    ]
    return one_input(nodes, {"w": random(6, 8), "b": random(6, seed=1), "v": random(6, 8, seed=2)})


def products(rank):
    def make():
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
            helper.make_node("Add", ["b", "a"], ["y"], "bias"),
        ]
        return one_input(nodes, {"w": random(8, 6), "b": random(6)}, rank=rank)

    return make


def reciprocal():
    nodes = [
        helper.make_node("Exp", ["x"], ["e"], "exp"),
        helper.make_node("Reciprocal", ["e"], ["r"], "reciprocal"),
        helper.make_node("Mul", ["r", "x"], ["y"], "product"),
    ]
    return one_input(nodes, {})


def unary(op_type, domain="", **attributes):
    return lambda: one_input([helper.make_node(op_type, ["x"], ["y"], "it", domain=domain, **attributes)], {})


def masked(least):
    """Scores with the last position hidden, through a softmax; the mask is made of constants of three kinds."""

    def make():
        nodes = [
            helper.make_node("Constant", [], ["least"], value=onnx.numpy_helper.from_array(np.float32(least), "least")),
            helper.make_node("Where", ["hidden", "least", "zero"], ["mask"], "mask"),
            helper.make_node("Add", ["x", "mask"], ["s"], "scores"),
            helper.make_node("Add", ["s", "added"], ["t"], "more"),
            helper.make_node("Softmax", ["t"], ["y"], "softmax", axis=-1),
        ]
        hidden = np.array([False] * 7 + [True])
        tensors = {"hidden": hidden, "zero": np.float32(0), "added": np.where(hidden, np.float32(least), 0)}
        return one_input(nodes, {**tensors, "added": tensors["added"].astype(np.float32)})

    return make


def spelled_out_norm():
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["m"], axes=[-1]),
        helper.make_node("Add", ["m", "epsilon"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["q"]),
        helper.make_node("Div", ["x", "q"], ["n"], "normed"),
        helper.make_node("Mul", ["n", "w"], ["y"]),
    ]
    return one_input(nodes, {"two": np.float32(2), "epsilon": np.float32(1e-6), "w": random(8)})


def length_norm():
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["p"]),
        helper.make_node("ReduceSum", ["p", "last"], ["s"]),
        helper.make_node("Pow", ["s", "half"], ["q"]),
        helper.make_node("Div", ["x", "q"], ["y"], "normed"),
    ]
    return one_input(nodes, {"two": np.float32(2), "half": np.float32(0.5), "last": np.array([1])})


def simplified_norms():
    contrib = {"domain": "com.microsoft", "epsilon": 1e-6}
    nodes = [
        helper.make_node("SimplifiedLayerNormalization", ["x", "w"], ["a"], "first", axis=-1, epsilon=1e-6),
        helper.make_node(
            "SkipSimplifiedLayerNormalization", ["a", "x", "w"], ["b", "", "", "sum"], "second", **contrib
        ),
        helper.make_node("Add", ["b", "sum"], ["y"], "end"),
    ]
    return one_input(nodes, {"w": random(8)})


def two_ends():
    nodes = [
        helper.make_node("Add", ["x", "z"], ["a"], "sum"),
        helper.make_node("Relu", ["a"], ["y"], "positive"),
        helper.make_node("Neg", ["a"], ["v"], "negative"),
    ]
    shape = ["batch", 8]
    return graph(
        nodes, {}, [("x", FLOAT, shape), ("z", FLOAT, shape), ("unread", FLOAT, [1])],
        [("y", FLOAT, shape), ("v", FLOAT, shape)],
    )  # fmt: skip


def language_model(tied=True):
    """Ids through an embedding and a head, whose weight is the embedding turned over."""
    table = random(64, 32, seed=3)
    head = table.T.copy() if tied else random(32, 64, seed=4)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"], "embedding"),
        helper.make_node("MatMul", ["h", "head"], ["logits"], "head"),
    ]
    ends = [("ids", INT64, ["batch", "length"])], [("logits", FLOAT, ["batch", "length", 64])]
    return graph(nodes, {"table": table, "head": head}, *ends)


def quantized_language_model():
    """The same with an embedding of 8 bits and a head of 4, as `quantize_embedding_int8` and a quantizer leave it."""
    table = random(64, 32, seed=3)
    eight, four = rtn(table, Grid(8, 32, True)), rtn(table, Grid(4, 32, True))
    tensors = {
        "table": eight.codes.reshape(64, 32), "table.scales": eight.scales,
        "head": pack(four.codes, 4), "head.scales": four.scales,
    }  # fmt: skip
    facts = {"K": 32, "N": 64, "bits": 4, "block_size": 32, "accuracy_level": 4}
    lookup = {"bits": 8, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
    contrib = {"domain": "com.microsoft"}
    nodes = [
        helper.make_node(
            "GatherBlockQuantized", ["table", "ids", "table.scales"], ["h"], "lookup", **lookup, **contrib
        ),
        helper.make_node("MatMulNBits", ["h", "head", "head.scales"], ["logits"], "head", **facts, **contrib),
    ]
    ends = [("ids", INT64, ["batch", "length"])], [("logits", FLOAT, ["batch", "length", 64])]
    return graph(nodes, tensors, *ends)


def indexed():
    codes = rtn(random(16, 64), Grid(4, 32, True))
    tensors = {"codes": pack(codes.codes, 4), "scales": codes.scales, "index": np.repeat([0, 1], 32).astype(np.int32)}
    facts = {"K": 64, "N": 16, "bits": 4, "block_size": 32, "domain": "com.microsoft"}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales", "", "index"], ["y"], "product", **facts)
    return one_input([node], tensors, columns=64)


def branches():
    """An If whose branches hold the same constant as the graph around them."""
    weight = random(8, 4)

    def branch(name):
        held = onnx.numpy_helper.from_array(weight, f"{name}.w")
        node = helper.make_node("MatMul", ["x", f"{name}.w"], [f"{name}.y"], name)
        out = helper.make_tensor_value_info(f"{name}.y", FLOAT, ["batch", 4])
        return helper.make_graph([node], name, [], [out], [held])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "outer"),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["is"]),
        helper.make_node("If", ["is"], ["b"], "if", then_branch=branch("then"), else_branch=branch("else")),
        helper.make_node("Add", ["a", "b"], ["y"], "end"),
    ]
    return one_input(nodes, {"w": weight, "zero": np.float32(0)}, wide=4)


def doubled():
    nodes = [
        helper.make_node("Exp", ["x"], ["a"], "one"),
        helper.make_node("Exp", ["x"], ["b"], "other"),
        helper.make_node("Add", ["a", "b"], ["y"], "end"),
    ]
    return one_input(nodes, {})


def copied():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("MemcpyToHost", ["a"], ["b"], "down"),
        helper.make_node("MemcpyFromHost", ["b"], ["y"], "up"),
    ]
    return one_input(nodes, {})


def dequantized():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], "quantize"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], "dequantize"),
    ]
    return one_input(nodes, {"scale": np.float32(0.05), "zero": np.uint8(128)})


def replaceable():
    made = dense()
    made.graph.input.append(helper.make_tensor_value_info("first", FLOAT, [8, 96]))
    return made


def packed_attention():
    qkv = ("q", "k", "v")
    attributes = {"scale": 0.5, "num_heads": 2, "domain": "custom"}
    node = helper.make_node("PackedAttention", [*qkv, "lengths"], ["y"], "attention", **attributes)
    shape = [1, 2, "length", 4]
    made = graph(
        [node], {}, [*((name, FLOAT, shape) for name in qkv), ("lengths", TensorProto.INT32, ["ends"])],
        [("y", FLOAT, [1, "length", 2, 4])],
    )  # fmt: skip
    made.opset_import.append(helper.make_opsetid("custom", 1))
    return made


IDS_FEED = {"ids": IDS}
TWO = {"x": X, "z": X[::-1].copy(), "unread": np.zeros(1, np.float32)}
EXAMPLES: Mapping[str, Example] = {
    "decompose_quick_gelu": Example(
        unary("QuickGelu", "com.microsoft", alpha=1.5), operators={"QuickGelu": 0, "Sigmoid": 1, "Mul": 2}
    ),
    "deduplicate_nodes": Example(doubled, operators={"Exp": 1}),
    "deduplicate_subgraph_initializers": Example(branches),
    "expose_outputs": Example(dense, {"names": ("first/Relu",)}),
    "expose_quantized_output": Example(dequantized, {"output_name": "y"}, {"DequantizeLinear": 0, "QuantizeLinear": 1}),
    "gemm_to_mat_mul_add": Example(gemms, operators={"Gemm": 0, "MatMul": 3, "Add": 2, "Mul": 2, "Transpose": 0}),
    "infer_shapes": Example(convolutional, feed={"x": random(2, 3, 9, 7)}),
    "mat_mul_add_to_gemm": Example(products(2), operators={"Gemm": 1, "MatMul": 0, "Add": 0, "Reshape": 0}),
    "packed_attention_to_loop_mha": Example(packed_attention),
    "pow_reduce_sum_pow_div2_lp_norm": Example(length_norm, operators={"LpNormalization": 1, "Pow": 0}),
    "quantize_embedding_int8": Example(
        language_model, operators={"GatherBlockQuantized": 1, "Gather": 0}, feed=IDS_FEED, tolerance=0.02
    ),
    "reciprocal_mul_to_div": Example(reciprocal, operators={"Div": 1, "Reciprocal": 0, "Mul": 0}),
    "remove_gidx_from_mat_mul_n_bits": Example(indexed, feed={"x": random(3, 64)}),
    "remove_initializer_from_inputs": Example(replaceable),
    "remove_inputs": Example(two_ends, {"names": ("unread",)}, feed=TWO),
    "remove_memcpy": Example(copied, operators={"Relu": 1, "MemcpyToHost": 0, "MemcpyFromHost": 0}),
    "remove_shapes": Example(lambda: shaped(convolutional()), feed={"x": random(2, 3, 9, 7)}),
    "rename_input_dims": Example(dense, {"input_name": "x", "dim_idx": 0, "dim_name": "rows"}),
    "rename_inputs": Example(two_ends, {"old_names": ("x", "z"), "new_names": ("left", "right")}, feed=TWO),
    "rename_output_dims": Example(dense, {"output_idx": 0, "dim_idx": 0, "dim_name": "rows"}),
    "rename_outputs": Example(two_ends, {"old_names": ("y",), "new_names": ("answer",)}, feed=TWO),
    "reorder_inputs": Example(two_ends, {"permutation": (1, 2, 0)}, feed=TWO),
    "replace_attention_mask_value": Example(masked(-3.4028234663852886e38)),
    "replace_erf_with_tanh": Example(unary("Erf"), operators={"Erf": 0, "Tanh": 1}, tolerance=0.05),
    "rms_norm_to_l2_norm": Example(spelled_out_norm, operators={"LpNormalization": 1, "Sqrt": 0, "ReduceMean": 0}),
    "share_embedding_lm_head": Example(
        quantized_language_model, operators={"MatMulNBits": 1}, feed=IDS_FEED, tolerance=0.15, external=True
    ),
    "simplified_layer_norm_to_l2_norm": Example(
        simplified_norms, operators={"LpNormalization": 2, "SkipSimplifiedLayerNormalization": 0}, tolerance=1e-4
    ),
    "tie_word_embeddings": Example(language_model, operators={"Transpose": 1}, feed=IDS_FEED),
    "zero_out_input": Example(lambda: fixed(dense()), {"node_name": "first/Add", "input_idx": 0}),
}
#: those after which a graph cannot be compared with the one before: it gives other things, or did not run
OTHERWISE = ("expose_quantized_output", "packed_attention_to_loop_mha", "remove_memcpy", "zero_out_input")


def shaped(model):
    return onnx.shape_inference.infer_shapes(model)


def fixed(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    return model


def operated(folder, name, **parameters):
    return run_pass("graph_surgeries", folder, surgeries=(Operation(name, parameters),))


@pytest.mark.parametrize("name", parts.names("surgeries"))
def test_a_surgery_keeps_the_outputs_and_changes_the_operators(name, tmp_path):
    example = EXAMPLES[name]
    assert issubclass(parts.find("surgeries", name), Surgery)
    source = saved(example.make(), tmp_path / "source", example.external)
    made = operated(source, name, **example.parameters)
    assert not any("nothing to do" in remark for remark in made.provenance.remarks)
    found = operators(made.path)
    assert {kind: found[kind] for kind in example.operators} == dict(example.operators)
    if name in OTHERWISE:
        return
    surgery = Operation(name, example.parameters).make()
    feed = {surgery.renamed.get(key, key): value for key, value in example.feed.items()}
    if name == "remove_inputs":
        feed.pop("unread")
    before, after = computed(source, example.feed), computed(made.path, feed)
    for one, other in zip(before, after, strict=False):
        np.testing.assert_allclose(other, one, atol=example.tolerance * np.abs(one).max())


def test_a_product_of_three_axes_becomes_a_gemm_between_reshapes(tmp_path):
    source = saved(products(3)(), tmp_path / "source")
    made = operated(source, "mat_mul_add_to_gemm")
    assert operators(made.path)["Gemm"] == 1 and operators(made.path)["MatMul"] == 0
    feed = {"x": random(2, 5, 8)}
    np.testing.assert_allclose(computed(made.path, feed)[0], computed(source, feed)[0], atol=1e-6)


def test_packed_attention_is_that_of_each_sequence_alone(tmp_path):
    made = operated(saved(packed_attention(), tmp_path / "source"), "PackedAttentionToLoopMHA")
    q, k, v = (np.random.default_rng(n).standard_normal((1, 2, 9, 4)).astype(np.float32) for n in range(3))
    ends = np.array([0, 4, 5, 9], np.int32)
    [found] = computed(made.path, {"q": q, "k": k, "v": v, "lengths": ends})
    each = [attended(*(one[:, :, a:b].astype(np.float64) for one in (q, k, v))) for a, b in pairwise(ends)]
    np.testing.assert_allclose(found, np.concatenate(each, axis=1), atol=1e-5)


def attended(q, k, v):
    """Attention ``[batch, length, heads, size]`` with scores times a half."""
    scores = np.exp(0.5 * q @ k.transpose(0, 1, 3, 2))
    return (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def test_a_head_that_is_tied_is_stored_once_and_another_stays(tmp_path):
    source = saved(language_model(), tmp_path / "tied", external=True)
    made = operated(source, "tie_word_embeddings")
    before, after = ((folder / name).stat().st_size for folder, name in
                     ((source, "weights.bin"), (made.path, "model.onnx.data")))  # fmt: skip
    assert before > 16000 and after == 64 * 32 * 4
    other = operated(saved(language_model(tied=False), tmp_path / "other"), "tie_word_embeddings")
    assert other.provenance.remarks == ("model.onnx: tie_word_embeddings found nothing to do",)


def test_a_shared_head_takes_no_bytes_of_its_own(tmp_path):
    source = saved(quantized_language_model(), tmp_path / "source", external=True)
    made = operated(source, "share_embedding_lm_head")
    assert (made.path / "model.onnx.data").stat().st_size == 64 * 32
    table = random(64, 32, seed=3)
    exact = table[IDS] @ table.T
    [eight], [four] = computed(made.path, IDS_FEED), computed(source, IDS_FEED)
    assert np.abs(eight - exact).max() < np.abs(four - exact).max() / 5


def test_masks_are_what_was_asked_for(tmp_path):
    source = saved(masked(-np.inf)(), tmp_path / "source")
    made = operated(source, "replace_attention_mask_value", replacement=-50.0)
    held = onnx.load(made.path / "model.onnx").graph
    values = [onnx.numpy_helper.to_array(one) for one in held.initializer if one.name == "added"]
    assert values[0][-1] == -50 and not values[0][:-1].any()
    np.testing.assert_allclose(computed(made.path, {"x": X})[0], computed(source, {"x": X})[0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("rename_inputs", {"old_names": ("xx",), "new_names": ("z",)}, "there is no input 'xx'"),
        ("rename_inputs", {"old_names": ("x",)}, "old_names names 1, new_names 0"),
        ("rename_input_dims", {"input_name": "x", "dim_idx": 4}, "'x' has 2 axes"),
        ("rename_output_dims", {"output_idx": 1}, "the graph has 1 outputs"),
        ("reorder_inputs", {"permutation": (0, 0)}, "does not name each input once"),
        ("expose_outputs", {"names": ("first/Rel",)}, "there is no node 'first/Rel'"),
        ("expose_quantized_output", {"output_name": "y"}, "not given by a DequantizeLinear"),
        ("zero_out_input", {"node_name": "first/Add", "input_idx": 9}, "has 2 inputs"),
        ("replace_attention_mask_value", {"replacement": 5.0}, "does not lie between"),
        ("tie_embeddings", {}, "unknown surgery 'tie_embeddings'"),
        ("tie_word_embeddings", {"tie": True}, "there is no 'tie' here"),
    ],
)
def test_what_fits_nothing_is_refused(tmp_path, name, parameters, message):
    with pytest.raises(ColdpressError, match=message):
        operated(saved(dense(), tmp_path / "source"), name, **parameters)


def test_several_are_done_in_a_row_and_outputs_are_compared_by_their_new_names(tmp_path):
    source = saved(two_ends(), tmp_path / "source")
    steps = [
        {"type": "rename_inputs", "parameters": {"old_names": ["x"], "new_names": ["between"]}},
        {"type": "rename_inputs", "parameters": {"old_names": ["between"], "new_names": ["left"]}},
        {"type": "rename_outputs", "parameters": {"old_names": ["v"], "new_names": ["minus"]}},
    ]
    made = coldpress.run_pass("graph_surgeries", source, tmp_path / "out", surgeries=steps)
    assert made.data["verdict"] == "verified"
    [found] = made.data["quality"]["graphs"]
    assert found["relative"] == 0 and found["output"] in ("y", "v")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("rename_inputs", {"old_names": ("x",), "new_names": ("y",)}, "'y' would stand for two values"),
        ("remove_inputs", {"names": ("x", "x")}, "names: x, x"),
        ("expose_outputs", {"names": ()}, "names: none"),
    ],
)
def test_names_that_cannot_be_are_refused(name, parameters, message, tmp_path):
    with pytest.raises(ColdpressError, match=message):
        operated(saved(dense(), tmp_path / "source"), name, **parameters)


@pytest.mark.parametrize(("threshold", "left"), [(-20_000, -10_000), (-3e30, -60_000)])
def test_masks_of_halves_stay_numbers_that_halves_hold(threshold, left):
    from onnx_ir import Tensor

    replacement = -10_000 if left == -10_000 else -1e9
    surgery = parts.find("surgeries", "replace_attention_mask_value")(threshold=threshold, replacement=replacement)
    made = surgery._replaced(Tensor(np.array([-65504, 1], np.float16)))
    np.testing.assert_allclose(made.numpy(), [left, 1], rtol=1e-3)
