"""Casts that undo each other, or that change nothing: each is a copy of its tensor at every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.parts import Finding, Rule, place_of
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class CastChains(Rule):
    """A Cast to the type that a value has, and a Cast of a Cast back to where it came from."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        idle = []
        for node in graph.graph.all_nodes():
            value = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
            if value is None:
                continue
            to, before = node.attributes["to"].as_int(), value.producer()
            if value.dtype is not None and value.dtype.value == to:
                idle.append(node)
            elif before is not None and before.op_type == "Cast" and _dtype(before) == to:
                yield Finding(
                    f"undoes the Cast '{before.name}'",
                    "read what that one reads, if the rounding in between is not meant",
                    place_of([node]),
                    severity="warning",
                )
        if idle:
            kind = idle[0].inputs[0].dtype.name.lower()
            problem = f"a Cast to {kind}, which its input has"
            yield Finding(problem, "remove it", place_of(idle), severity="warning")

    def mend(self, graph: ir.Model, target: Target) -> int:
        """Bypass casts that change nothing, and pairs that go through a type that holds every number."""
        from coldpress.graphs.edits import give_instead

        changed = 0
        for node in [node for node in graph.graph.all_nodes() if node.op_type == "Cast" and node.inputs[0] is not None]:
            value, to, before = node.inputs[0], node.attributes["to"].as_int(), node.inputs[0].producer()
            if value.dtype is not None and value.dtype.value == to:
                source = value
            elif before is not None and before.op_type == "Cast" and _dtype(before) == to and _is_wider(value, before):
                source = before.inputs[0]
            else:
                continue
            if source is not None and not source.is_graph_output() and _is_made_in(node.graph, source):
                give_instead(node, source)
                changed += 1
        return changed


def _is_made_in(graph: ir.Graph, value: ir.Value) -> bool:
    """Whether a node of a graph gives a value: others cannot take the name of an output of the graph."""
    node = value.producer()
    return node is not None and node.graph is graph


def _is_wider(value: ir.Value, cast: ir.Node) -> bool:
    """Whether the type between two casts holds every number of the one around them."""
    outer = cast.inputs[0].dtype if cast.inputs[0] is not None else None
    if outer is None or value.dtype is None or not outer.is_floating_point() or not value.dtype.is_floating_point():
        return False
    return value.dtype.bitwidth > outer.bitwidth


def _dtype(cast: ir.Node) -> int | None:
    """The type of what a Cast reads."""
    value = cast.inputs[0]
    return value.dtype.value if value is not None and value.dtype is not None else None
