"""Encodings of ``MatMulNBits`` that ONNX Runtime's kernels on a CPU run 20 to 100 times slower than others.

Measured with onnxruntime 1.31 on a CPU with AVX512-VNNI, K=2048, N=4096, one row: a float product takes 0.7 ms, a fast
4-bit one 0.1 ms, and the encodings named here 15 to 60 ms (``benchmarks/kernels.py`` repeats the measurement).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.graphs.kernels import BLOCK_SIZES, Encoding, drop_sorted_index
from coldpress.parts import Finding, Rule
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_ZERO_POINTS, _INDICES = 3, 4  # inputs of MatMulNBits


def slow_encoding(encoding: Encoding, accuracy_level: int, provider: str, place: str = "") -> Iterator[Finding]:
    """What is wrong with an encoding on a provider, by its short name; ``place`` is the node that has it."""
    if encoding.block_size not in BLOCK_SIZES:
        yield Finding(
            f"block_size {encoding.block_size} is not one that MatMulNBits has",
            f"use one of {', '.join(map(str, BLOCK_SIZES))}",
            place,
        )
    if provider != "cpu":
        return
    if encoding.bits in (2, 8) and accuracy_level != 4:
        yield Finding(
            f"accuracy_level {accuracy_level} with {encoding.bits}-bit weights is 30 to 100 times slower on the CPU",
            "use accuracy_level 4, or 4-bit weights",
            place,
        )
    if encoding.bits == 2 and encoding.block_size not in (32, 64, 128):
        yield Finding(
            f"2-bit weights with block_size {encoding.block_size} are 100 times slower on the CPU",
            "use block_size 32, 64 or 128",
            place,
        )


@dataclass(frozen=True)
class BlockQuantizedProducts(Rule):
    """Products with 2, 4 or 8-bit weights (MatMulNBits) in an encoding that has no fast kernel."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        for node in graph.graph.all_nodes():
            if node.op_type == "MatMulNBits":
                yield from slow_encoding(
                    _encoding(node), node.attributes.get_int("accuracy_level", 0), target.short_name, str(node.name)
                )
                if target.short_name == "cpu":
                    yield from _slow_inputs(node)

    def mend(self, graph: ir.Model, target: Target) -> int:
        """Let the CPU multiply 8-bit and 2-bit weights in int8, and drop indices that say what holds anyway."""
        changed = 0
        for node in (node for node in graph.graph.all_nodes() if node.op_type == "MatMulNBits"):
            is_slow = node.attributes.get_int("bits", 4) in (2, 8) and node.attributes.get_int("accuracy_level", 0) != 4
            if is_slow and target.short_name == "cpu":
                node.attributes.add(_accuracy_level(4))
                changed += 1
            changed += drop_sorted_index(node)
        return changed


def _accuracy_level(level: int) -> ir.Attr:
    import onnx_ir as ir

    return ir.AttrInt64("accuracy_level", level)


def _slow_inputs(node: ir.Node) -> Iterator[Finding]:
    given = dict(enumerate(node.inputs))
    zero_points = given.get(_ZERO_POINTS)
    if zero_points is not None and zero_points.dtype is not None and zero_points.dtype.is_floating_point():
        yield Finding(
            "zero points that are floats are 100 times slower on the CPU",
            "quantize with integer zero points",
            str(node.name),
        )
    if given.get(_INDICES) is not None:
        yield Finding(
            "weights that are grouped by an index (g_idx) have no fast kernel on the CPU",
            "quantize without reordering, or sort the columns by group",
            str(node.name),
        )


def _encoding(node: ir.Node) -> Encoding:
    zero_points = dict(enumerate(node.inputs)).get(_ZERO_POINTS)
    return Encoding(
        node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0), symmetric=zero_points is None
    )
