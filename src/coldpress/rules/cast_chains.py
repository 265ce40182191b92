"""Casts that undo each other, or that change nothing: each is a copy of its tensor at every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.parts import Finding, Rule
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class CastChains(Rule):
    """A Cast to the type that a value has, and a Cast of a Cast back to where it came from."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        for node in graph.graph.all_nodes():
            value = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
            if value is None:
                continue
            to, before = node.attributes["to"].as_int(), value.producer()
            if value.dtype is not None and value.dtype.value == to:
                yield Finding(
                    f"a Cast to {value.dtype.name.lower()}, which its input has",
                    "remove it",
                    str(node.name),
                    severity="warning",
                )
            elif before is not None and before.op_type == "Cast" and _dtype(before) == to:
                yield Finding(
                    f"undoes the Cast '{before.name}'",
                    "read what that one reads, if the rounding in between is not meant",
                    str(node.name),
                    severity="warning",
                )


def _dtype(cast: ir.Node) -> int | None:
    """The type of what a Cast reads."""
    value = cast.inputs[0]
    return value.dtype.value if value is not None and value.dtype is not None else None
