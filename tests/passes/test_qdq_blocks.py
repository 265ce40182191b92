"""Products of few bits in both forms: MatMulNBits, and DequantizeLinear in front of MatMul."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from coldpress.errors import ColdpressError
from coldpress.quant.grid import Grid
from coldpress.quant.pack import pack, pack_zero_points
from coldpress.quant.rtn import rtn
from tests.onnx_models import computed, dense, graph, operators, random, run_pass, saved

X = random(3, 72, seed=9)


def product(bits, symmetric, bias=False):
    """``x [batch, 72]`` times a weight ``[16, 72]`` in blocks of 32, the last one padded; returns it in floats, too."""
    codes = rtn(random(16, 72), Grid(bits, 32, symmetric))
    tensors = {"codes": pack(codes.codes, bits), "scales": codes.scales}
    names = ["x", "codes", "scales"]
    middle = 1 << (bits - 1)
    zeros = np.full(codes.scales.shape, middle) if symmetric else codes.zero_points
    if not symmetric:
        tensors["zeros"] = pack_zero_points(codes.zero_points, bits)
        names.append("zeros")
    if bias:
        tensors["bias"] = random(16)
        names += [*[""] * (5 - len(names)), "bias"]
    facts = {"K": 72, "N": 16, "bits": bits, "block_size": 32, "accuracy_level": 0, "domain": "com.microsoft"}
    ends = [("x", TensorProto.FLOAT, ["batch", 72])], [("y", TensorProto.FLOAT, ["batch", 16])]
    made = graph([helper.make_node("MatMulNBits", names, ["y"], "product", **facts)], tensors, *ends)
    weight = (codes.codes - zeros[..., None].astype(np.float64)) * codes.scales[..., None]
    return made, X @ weight.reshape(16, -1)[:, :72].T + tensors.get("bias", 0)


def as_written(folder):
    """What a graph computes where ONNX Runtime makes no MatMulNBits of it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options).run(None, {"x": X})[0]


@pytest.mark.parametrize(
    ("bits", "symmetric", "options"),
    [
        (4, True, {"signed": True}),
        (4, True, {"signed": True, "add_zero_point": True}),
        (4, False, {"use_transpose_op": True}),
        (8, True, {"signed": True, "use_transpose_op": True}),
        (8, False, {}),
    ],
)
def test_n_bits_become_onnx_operators_and_come_back(tmp_path, bits, symmetric, options):
    model, expected = product(bits, symmetric, bias=bits == 4)
    source = saved(model, tmp_path / "source", external=True)
    written = run_pass("mat_mul_n_bits_to_qdq", source, **options)
    found = operators(written.path)
    assert found["MatMulNBits"] == 0 and found["DequantizeLinear"] == found["MatMul"] == 1
    held = {one.name: one for one in onnx.load(written.path / "model.onnx", load_external_data=False).graph.initializer}
    kind = f"{'' if options.get('signed') else 'U'}INT{bits}"
    assert held["codes.qdq"].data_type == TensorProto.DataType.Value(kind)
    assert ("codes.qdq.zero_points" in held) == (not options.get("signed") or "add_zero_point" in options)
    np.testing.assert_allclose(as_written(written.path), expected, atol=1e-4)
    back = run_pass("qdq_to_mat_mul_n_bits", written.path, accuracy_level=4)
    assert operators(back.path)["MatMulNBits"] == 1 and operators(back.path)["DequantizeLinear"] == 0
    assert np.abs(computed(back.path, {"x": X})[0] - expected).max() < 0.02 * np.abs(expected).max()


def test_products_that_have_no_other_form_stay_and_are_named(tmp_path):
    model, _ = product(2, True)
    made = run_pass("mat_mul_n_bits_to_qdq", saved(model, tmp_path / "source"))
    assert made.provenance.remarks == ("model.onnx: 1 products stay MatMulNBits: product",)
    assert operators(made.path)["MatMulNBits"] == 1


def test_graphs_without_such_products_and_slow_encodings_are_refused(tmp_path):
    plain = saved(dense(), tmp_path / "plain")
    with pytest.raises(ColdpressError, match="no graph has a MatMulNBits"):
        run_pass("mat_mul_n_bits_to_qdq", plain)
    with pytest.raises(ColdpressError, match="no product has a weight with a scale for each block"):
        run_pass("qdq_to_mat_mul_n_bits", plain)
    eight = run_pass("mat_mul_n_bits_to_qdq", saved(product(8, True)[0], tmp_path / "eight"))
    with pytest.raises(ColdpressError, match="accuracy_level 0 with 8-bit weights"):
        run_pass("qdq_to_mat_mul_n_bits", eight.path, accuracy_level=0)
    four = saved(product(4, True)[0], tmp_path / "four")
    with pytest.raises(ColdpressError, match="'prod' matches no product"):
        run_pass("mat_mul_n_bits_to_qdq", four, nodes_to_exclude=("prod",))
