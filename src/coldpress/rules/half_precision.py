"""Half precision on a provider without products of halves: every product is wrapped into casts and runs slower than
float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.parts import Finding, Rule, place_of
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_PRODUCTS = ("MatMul", "Gemm", "Conv", "MatMulNBits")
_HALVES = {"FLOAT16": "float16", "BFLOAT16": "bfloat16"}


def half_on_cpu(dtype: str, target: Target, fix: str, place: str = "") -> Iterator[Finding]:
    """The finding about products of this type, by whichever name, on a target, if there is one."""
    if target.short_name == "cpu":
        yield Finding(
            f"{dtype} on {target.provider}: it has no {dtype} matrix product, so every layer would be cast and run"
            " slower than in float32",
            fix,
            place,
        )


@dataclass(frozen=True)
class HalfPrecision(Rule):
    """Products of float16 or bfloat16 on a processor."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        found: dict[str, list[ir.Node]] = {}
        for node in graph.graph.all_nodes():
            dtype = node.inputs[0].dtype if node.op_type in _PRODUCTS and node.inputs and node.inputs[0] else None
            if dtype is not None and dtype.name in _HALVES:
                found.setdefault(_HALVES[dtype.name], []).append(node)
        for dtype, nodes in found.items():
            yield from half_on_cpu(dtype, target, "convert the graph to float32, or quantize it", place_of(nodes))
