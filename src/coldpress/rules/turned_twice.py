"""Layouts that are turned and turned back: two Transposes, each a copy of its tensor, that undo each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.graphs.queries import maker, nodes_of
from coldpress.parts import Finding, Rule
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class TurnedTwice(Rule):
    """A Transpose of a Transpose back to where it came from."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        for node in nodes_of(graph, "Transpose"):
            if (before := _undone(node)) is not None:
                yield Finding(
                    f"undoes the Transpose '{before.name}'",
                    "read what that one reads",
                    str(node.name),
                    severity="warning",
                )

    def mend(self, graph: ir.Model, target: Target) -> int:
        from coldpress.graphs.edits import give_instead

        changed = 0
        for node in nodes_of(graph, "Transpose"):
            before = _undone(node)
            source = before.inputs[0] if before is not None else None
            if source is None or source.is_graph_output() or (made := source.producer()) is None:
                continue
            if made.graph is node.graph:
                give_instead(node, source)
                changed += 1
        return changed


def _undone(node: ir.Node) -> ir.Node | None:
    """The Transpose that a Transpose undoes."""
    before = maker(node.inputs[0], "Transpose")
    if before is None or "perm" not in node.attributes or "perm" not in before.attributes:
        return None
    first, second = (list(one.attributes.get_ints("perm", [])) for one in (before, node))
    return before if [first[axis] for axis in second] == list(range(len(first))) else None
