"""Integer products that miss the fast kernels of CPUs: by the signs of their types, or as they are never made of QDQ
nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.parts import Finding, Rule, place_of
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_PRODUCTS = ("MatMul", "Gemm", "Conv")
#: graph_optimization_level of session options -> too low for integer products
_LEVELS_WITHOUT = ("disable_all", "basic")


def slow_signs(activations: str, weights: str, target: Target, place: str = "") -> Iterator[Finding]:
    """What is slow of ``activations`` of 8 or 16 bits with int8 or uint8 ``weights``."""
    if target.short_name != "cpu":
        return
    if activations in ("int16", "uint16"):
        yield Finding(
            "activations of 16 bits become no integer products on CPUs, which run float ones between roundings",
            "use uint8 activations",
            place,
            severity="warning",
        )
    for what, is_slow, other in (
        ("signed activations", activations == "int8", "uint8 activations"),
        ("unsigned weights", weights == "uint8", "int8 weights"),
    ):
        if is_slow:
            yield Finding(f"{what} miss the fast int8 products of CPUs", f"use {other}", place, severity="warning")


def products_not_made(options: Mapping[str, Any], place: str = "") -> Iterator[Finding]:
    """Of session options for a graph with QDQ nodes: a level at which these never become integer products."""
    if options.get("graph_optimization_level") in _LEVELS_WITHOUT:
        yield Finding(
            "QuantizeLinear and DequantizeLinear only become integer products from the level 'extended' on",
            "raise graph_optimization_level",
            place,
            severity="warning",
        )


@dataclass(frozen=True)
class Int8Products(Rule):
    """Int8 products (QDQ) of types, or at an optimization level, for which there is no fast kernel."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        nodes = list(graph.graph.all_nodes())
        if any(node.op_type == "DequantizeLinear" for node in nodes):
            yield from products_not_made(options)
        found: dict[tuple[str, str], list[ir.Node]] = {}
        for node in nodes:
            kinds = [_quantized_as(value) for value in node.inputs[:2]] if node.op_type in _PRODUCTS else []
            if len(kinds) == 2 and all(kinds):
                found.setdefault((kinds[0], kinds[1]), []).append(node)
        for (activations, weights), places in found.items():
            yield from slow_signs(activations, weights, target, place_of(places))


def _quantized_as(value: ir.Value | None) -> str:
    """The integer type that a value was dequantized from; empty for all else."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None or node.inputs[0].dtype is None:
        return ""
    return node.inputs[0].dtype.name.lower()
