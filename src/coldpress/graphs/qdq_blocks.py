"""Weights with a scale for each block, in both forms: MatMulNBits of ONNX Runtime, and DequantizeLinear in front of a
MatMul, which is ONNX's own from opset 21 on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from coldpress.graphs.edits import add_initializer, contrib_node, give_instead, insert_before, take_place
from coldpress.graphs.kernels import BLOCK_SIZES
from coldpress.graphs.queries import CONTRIB, constant, is_onnx, maker
from coldpress.models.onnx_graphs import array_of
from coldpress.quant.pack import pack, pack_zero_points, unpack, unpack_zero_points

_ZERO_POINTS, _INDEX, _BIAS = 3, 4, 5
#: (bits, is signed) -> the type of codes
_TYPES = {
    (4, True): ir.DataType.INT4, (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8, (8, False): ir.DataType.UINT8,
}  # fmt: skip
_BITS = {dtype: bits for (bits, _), dtype in _TYPES.items()}
_ARRAYS = {
    ir.DataType.INT4: ml_dtypes.int4, ir.DataType.UINT4: ml_dtypes.uint4,
    ir.DataType.INT8: np.int8, ir.DataType.UINT8: np.uint8,
}  # fmt: skip


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _known(value: ir.Value | None) -> Any:
    """The tensor of a constant, also behind a Cast, which scales are stored behind."""
    cast = maker(value, "Cast")
    return constant(value if cast is None else cast.inputs[0])


def has_qdq_form(node: ir.Node) -> bool:
    """Whether a MatMulNBits can be written with DequantizeLinear: 4 or 8 bits in constant blocks, in their order."""
    zero_points = _input(node, _ZERO_POINTS)
    is_whole = zero_points is None or (
        (tensor := constant(zero_points)) is not None and tensor.dtype == ir.DataType.UINT8
    )
    constants = (constant(_input(node, 1)), _known(_input(node, 2)))
    is_known = is_whole and None not in constants and _input(node, _INDEX) is None
    return is_known and node.attributes.get_int("bits", 4) in (4, 8) and node.inputs[0].dtype is not None


def write_as_qdq(node: ir.Node, signed: bool, zero_point: bool, transpose: bool) -> None:
    """Write a MatMulNBits as DequantizeLinear and MatMul; see the pass `mat_mul_n_bits_to_qdq`."""
    graph, attributes = node.graph, node.attributes
    assert isinstance(graph, ir.Graph)
    columns, rows, bits, block = (attributes.get_int(name, 0) for name in ("K", "N", "bits", "block_size"))
    blocks, middle, turn = -(-columns // block), 1 << (bits - 1), not transpose
    dtype, name = _TYPES[bits, signed], str(node.inputs[1].name)
    packed, scales = constant(node.inputs[1]), _known(node.inputs[2])
    zeros = constant(_input(node, _ZERO_POINTS))

    def codes() -> np.ndarray:
        found = unpack(array_of(packed).reshape(rows, blocks, -1), bits).reshape(rows, -1)[:, :columns]
        return found.astype(np.int16) - signed * middle

    def zero_points() -> np.ndarray:
        packed_zeros = None if zeros is None else array_of(zeros).reshape(rows, -1)
        known = (
            np.full((rows, blocks), middle) if packed_zeros is None else unpack_zero_points(packed_zeros, blocks, bits)
        )
        return known.astype(np.int16) - signed * middle

    def held(suffix: str, values: Any, shape: list[int], kind: ir.DataType) -> ir.Value:
        made = partial(_turned, values, turn, _ARRAYS.get(kind) or kind.numpy(), kind, f"{name}.{suffix}")
        shape = shape[::-1] if turn else shape
        return _held(graph, ir.LazyTensor(made, dtype=kind, shape=ir.Shape(shape), name=f"{name}.{suffix}"))

    floats = node.inputs[0].dtype
    assert floats is not None
    inputs = [
        held("qdq", codes, [rows, columns], dtype),
        held("qdq.scales", lambda: array_of(scales).reshape(rows, blocks), [rows, blocks], floats),
    ]
    if zeros is not None or not signed or zero_point:
        inputs.append(held("qdq.zero_points", zero_points, [rows, blocks], dtype))
    weight = insert_before(node, "DequantizeLinear", inputs, axis=0 if turn else 1, block_size=block)
    weight = weight if turn else insert_before(node, "Transpose", [weight], perm=[1, 0])
    product = insert_before(node, "MatMul", [node.inputs[0], weight])
    bias = _input(node, _BIAS)
    give_instead(node, product if bias is None else insert_before(node, "Add", [product, bias]))


def _held(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer; that of another product with the same weight, where there is one."""
    known = graph.initializers.get(str(tensor.name))
    return add_initializer(graph, tensor) if known is None else known


def _turned(values: Any, turn: bool, kind: Any, dtype: ir.DataType, name: str) -> ir.Tensor:
    found = values()
    return ir.Tensor(np.ascontiguousarray((found.T if turn else found).astype(kind)), dtype=dtype, name=name)


@dataclass(frozen=True)
class BlockedProduct:
    """A MatMul whose weight ``dequantize`` gives, turned by a Transpose where ``is_turned``."""

    product: ir.Node
    dequantize: ir.Node
    is_turned: bool

    @property
    def facts(self) -> tuple[int, int, int, int]:
        """Columns, rows, bits, and the size of a block."""
        codes = constant(self.dequantize.inputs[0])
        columns, rows = (int(size) for size in (codes.shape[::-1] if self.is_turned else codes.shape))
        return columns, rows, _BITS[codes.dtype], self.dequantize.attributes.get_int("block_size", 0)


def blocked_product(product: ir.Node) -> BlockedProduct | None:
    """The product, if its weight has a scale for each block along its inputs, and MatMulNBits has such blocks."""
    if not is_onnx(product, "MatMul"):
        return None
    turn = maker(product.inputs[1], "Transpose")
    is_turned = turn is not None and list(turn.attributes.get_ints("perm", [1, 0])) == [1, 0]
    node = maker(turn.inputs[0] if turn is not None and is_turned else product.inputs[1], "DequantizeLinear")
    if node is None or (codes := constant(node.inputs[0])) is None or codes.dtype not in _BITS or len(codes.shape) != 2:
        return None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    others = [constant(value) for value in node.inputs[1:] if value is not None]
    fits = block in BLOCK_SIZES and axis % 2 == (1 if is_turned else 0) and None not in others
    return BlockedProduct(product, node, is_turned) if fits else None


def write_as_n_bits(found: BlockedProduct, accuracy_level: int) -> None:
    """Write DequantizeLinear and MatMul as MatMulNBits."""
    node, product = found.dequantize, found.product
    columns, rows, bits, block = found.facts
    blocks, middle, name = -(-columns // block), 1 << (bits - 1), str(node.inputs[0].name)
    stored, scales = constant(node.inputs[0]), constant(node.inputs[1])
    zeros = constant(_input(node, 2))
    shift = middle if stored.dtype in (ir.DataType.INT4, ir.DataType.INT8) else 0

    def along_rows(tensor: Any) -> np.ndarray:
        values = array_of(tensor)
        return np.ascontiguousarray(values if found.is_turned else values.T)

    def codes() -> ir.Tensor:
        whole = along_rows(stored).astype(np.int16) + shift
        padded = np.pad(whole, ((0, 0), (0, blocks * block - columns)), constant_values=middle)
        return ir.Tensor(pack(padded.astype(np.uint8).reshape(rows, blocks, block), bits), name=f"{name}.n_bits")

    known = np.full((rows, blocks), shift) if zeros is None else along_rows(zeros).astype(np.int16) + shift
    shape = ir.Shape([rows, blocks, block * bits // 8])
    held = [
        ir.LazyTensor(codes, dtype=ir.DataType.UINT8, shape=shape, name=f"{name}.n_bits"),
        ir.Tensor(along_rows(scales), dtype=scales.dtype, name=f"{name}.n_bits.scales"),
    ]
    if (known != middle).any():
        held.append(ir.Tensor(pack_zero_points(known.astype(np.uint8), bits), name=f"{name}.n_bits.zero_points"))
    graph = product.graph
    assert isinstance(graph, ir.Graph)
    inputs = [product.inputs[0], *(_held(graph, tensor) for tensor in held)]
    facts = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    graph.opset_imports.setdefault(CONTRIB, 1)
    take_place(product, contrib_node("MatMulNBits", inputs, facts, product.name))
