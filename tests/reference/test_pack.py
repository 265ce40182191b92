"""Packed codes: their bytes, the way back, and what ONNX Runtime's own kernels read in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.kquant import kquant
from coldpress.quant.pack import pack, pack_zero_points, unpack, unpack_zero_points

ROWS = 24


def run_node(kind: str, inputs: list[np.ndarray | None], attributes: dict[str, int]) -> np.ndarray:
    """The output of a model of one com.microsoft node; the first input that is not an initializer is fed."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    names = ["" if array is None else f"input_{place}" for place, array in enumerate(inputs)]
    fed = 0 if kind == "MatMulNBits" else 1
    stored = [
        numpy_helper.from_array(array, name)
        for place, (name, array) in enumerate(zip(names, inputs, strict=True))
        if array is not None and place != fed
    ]
    element = helper.np_dtype_to_tensor_dtype(inputs[fed].dtype)
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["output"], domain="com.microsoft", **attributes)],
        kind,
        [helper.make_tensor_value_info(names[fed], element, inputs[fed].shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        stored,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {names[fed]: inputs[fed]})[0]


def quantized(grid: Grid, columns: int) -> Codes:
    weight = np.random.default_rng(0).standard_normal((ROWS, columns)).astype(np.float32)
    return kquant(weight + np.float32(0.3), grid)


def test_the_first_code_of_a_byte_is_the_lowest() -> None:
    codes = np.array([[[1, 2, 3, 0, 3, 3, 0, 1]]], np.uint8)
    assert pack(codes, 2).tolist() == [[[1 | 2 << 2 | 3 << 4, 3 | 3 << 2 | 1 << 6]]]
    assert pack(codes, 4).tolist() == [[[0x21, 0x03, 0x33, 0x10]]]
    assert pack(codes, 8).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 18])
def test_unpacking_gives_back_what_was_packed(bits: int, blocks: int) -> None:
    random = np.random.default_rng(blocks)
    codes = random.integers(0, 2**bits, (7, blocks, 32), np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (7, blocks, 32 * bits // 8) and packed.flags.c_contiguous
    assert np.array_equal(unpack(packed, bits), codes)
    zero_points = random.integers(0, 2**bits, (7, blocks), np.uint8)
    packed = pack_zero_points(zero_points, bits)
    assert packed.shape == (7, -(-blocks * bits // 8))
    assert np.array_equal(unpack_zero_points(packed, blocks, bits), zero_points)


@pytest.mark.parametrize("way", [pack, unpack, pack_zero_points])
def test_three_bits_have_no_place_in_onnx(way: Callable[..., np.ndarray]) -> None:
    with pytest.raises(ColdpressError, match="3 bits") as caught:
        way(np.zeros((2, 32), np.uint8), 3)
    assert caught.value.hint is not None and "2, 4 or 8" in caught.value.hint


@pytest.mark.parametrize("columns", [128, 160, 100])
@pytest.mark.parametrize("accuracy_level", [0, 1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmulnbits_multiplies_by_the_dequantized_weight(
    bits: int, symmetric: bool, accuracy_level: int, columns: int
) -> None:
    grid = Grid(bits, 32, symmetric)
    codes = quantized(grid, columns)
    x = np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32)
    zeros = None if codes.zero_points is None else pack_zero_points(codes.zero_points, bits)
    inputs = [x, pack(codes.codes, bits), codes.scales, zeros]
    attributes = {"K": columns, "N": ROWS, "bits": bits, "block_size": 32, "accuracy_level": accuracy_level}
    got = run_node("MatMulNBits", inputs if zeros is not None else inputs[:3], attributes)
    expected = x.astype(np.float64) @ dequantize(codes, columns).T.astype(np.float64)
    assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max() * np.sqrt(columns)


@pytest.mark.parametrize(("columns", "stored"), [(128, 128), (160, 160), (100, 128), (100, 100)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gatherblockquantized_reads_the_dequantized_rows(bits: int, symmetric: bool, columns: int, stored: int) -> None:
    """The output is as wide as the data stores codes for: the padding is part of it, unless it is cut off the data."""
    codes = quantized(Grid(bits, 32, symmetric), columns)
    rows = np.array([[3, 0, ROWS - 1], [3, 7, 9]], np.int64)
    data = np.ascontiguousarray(pack(codes.codes, bits).reshape(ROWS, -1)[:, : stored * bits // 8])
    inputs = [data, rows, codes.scales]
    if codes.zero_points is not None:
        inputs.append(pack_zero_points(codes.zero_points, bits))
    attributes = {"bits": bits, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
    got = run_node("GatherBlockQuantized", inputs, attributes)
    assert np.array_equal(got, dequantize(codes, stored)[rows])
