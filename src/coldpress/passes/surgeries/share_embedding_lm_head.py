"""Let a head of few bits read the 8-bit codes of the token embedding, where the two are tied: one table instead of two.

It is done behind `quantize_embedding_int8`. A head whose weights are not those of the embedding is left alone: the
numbers of the two are compared, as far as the bits of the head tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldpress.graphs.edits import add_initializer, contrib_node, drop_unread, take_place
from coldpress.graphs.queries import constant
from coldpress.models.onnx_graphs import array_of
from coldpress.parts import Closeness
from coldpress.parts.surgery import Surgery
from coldpress.quant.pack import unpack, unpack_zero_points

if TYPE_CHECKING:
    import onnx_ir as ir

_ROWS = 256  # that tell whether the two are tied
#: 4 bits round weights by 9%, 2 bits by 45%
_LEAST_LIKENESS = 0.85


@dataclass(frozen=True)
class ShareEmbeddingLmHead(Surgery):
    """Let a head of few bits read the 8-bit codes of the token embedding that it is tied to."""

    closeness = Closeness(0.5, "the head has 8 bits instead of fewer")

    def operate(self, model: ir.Model) -> int:
        lookups = [node for node in model.graph if node.op_type == "GatherBlockQuantized" and _is_int8(node)]
        products = [node for node in model.graph if node.op_type == "MatMulNBits"]
        pairs = [(lookup, product) for product in products for lookup in lookups if _are_tied(lookup, product)]
        for lookup, product in pairs:
            _share(model.graph, lookup, product)
        return len(pairs)


def _is_int8(node: ir.Node) -> bool:
    codes = constant(node.inputs[0])
    return codes is not None and codes.dtype.name == "UINT8" and node.attributes.get_int("bits", 4) == 8


def _are_tied(lookup: ir.Node, product: ir.Node) -> bool:
    """Whether the first rows of both have nearly the same direction, in a product that has other codes of its own."""
    table = constant(lookup.inputs[0])
    rows, columns = (product.attributes.get_int(name, 0) for name in ("N", "K"))
    if product.attributes.get_int("bits", 4) == 8 or [rows, columns] != [int(size) for size in table.shape]:
        return False
    one, other = _of_lookup(lookup), _of_product(product)
    likeness = float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-30))
    return likeness > _LEAST_LIKENESS


def _of_lookup(node: ir.Node) -> np.ndarray:
    codes, scales = (array_of(constant(node.inputs[place]))[:_ROWS].astype(np.float32) for place in (0, 2))
    zeros = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    shift = 128.0 if zeros is None else array_of(zeros)[:_ROWS, :, None].astype(np.float32)
    blocks = codes.reshape(*scales.shape, -1)
    return ((blocks - shift) * scales[..., None]).reshape(len(codes), -1)


def _of_product(node: ir.Node) -> np.ndarray:
    bits = node.attributes.get_int("bits", 4)
    rows = node.attributes.get_int("N", 0)
    packed = array_of(constant(node.inputs[1]))[:_ROWS]
    codes = unpack(packed, bits).astype(np.float32)
    scales = array_of(constant(node.inputs[2])).reshape(rows, -1)[:_ROWS].astype(np.float32)
    zeros = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    shift: np.ndarray | float = 2.0 ** (bits - 1)
    if zeros is not None:
        shift = unpack_zero_points(array_of(zeros).reshape(rows, -1)[:_ROWS], codes.shape[1], bits)[..., None]
    values = (codes - shift) * scales[..., None]
    return values.reshape(len(codes), -1)[:, : node.attributes.get_int("K", 0)]


def _share(graph: ir.Graph, lookup: ir.Node, product: ir.Node) -> None:
    import onnx_ir as ir

    codes = constant(lookup.inputs[0])
    block = lookup.attributes.get_int("block_size", 128)
    rows, columns = (int(size) for size in codes.shape)
    shape, name = ir.Shape([rows, columns // block, block]), f"{lookup.inputs[0].name}.head"
    if isinstance(codes, ir.ExternalTensor):
        tensor: ir.TensorProtocol = ir.ExternalTensor(
            codes.location, codes.offset, codes.length, codes.dtype, shape=shape, name=name, base_dir=codes.base_dir
        )
    else:
        lazy = lambda: ir.Tensor(array_of(codes).reshape(shape.numpy()), name=name)  # noqa: E731
        tensor = ir.LazyTensor(lazy, dtype=codes.dtype, shape=shape, name=name)
    facts = {
        **{key: product.attributes.get_int(key, 0) for key in ("K", "N")},
        "bits": 8, "block_size": block, "accuracy_level": 4,
    }  # fmt: skip
    inputs = [product.inputs[0], add_initializer(graph, tensor), *lookup.inputs[2:4]]
    bias = product.inputs[5] if len(product.inputs) > 5 else None
    if bias is not None:
        inputs += [*[None] * (5 - len(inputs)), bias]
    take_place(product, contrib_node("MatMulNBits", inputs, facts, product.name))
    drop_unread(graph, [product])
