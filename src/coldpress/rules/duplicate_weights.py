"""Weights that are in a graph more than once, or that no node reads: bytes on the disk and in memory for nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.parts import Finding, Rule
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_SMALLEST_BYTES = 4096  # below, nobody would notice


@dataclass(frozen=True)
class DuplicateWeights(Rule):
    """Weights with the same bytes at two places of the file, and weights without a reader."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        import onnx_ir as ir

        first: dict[tuple[Any, ...], str] = {}
        places: dict[tuple[Any, ...], str] = {}
        for inner in graph.graphs():
            for name, value in inner.initializers.items():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _SMALLEST_BYTES:
                    continue
                if not value.uses() and not value.is_graph_output():
                    yield Finding(
                        f"{tensor.nbytes:,} bytes that no node reads",
                        "remove the initializer",
                        name,
                        severity="warning",
                    )
                if isinstance(tensor, ir.ExternalTensor):
                    place = (str(tensor.path), tensor.offset, tensor.length)
                    if place in places:
                        continue  # two names of the same bytes
                    places[place] = name
                content = (tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest())
                if content in first:
                    yield Finding(
                        f"the same {tensor.nbytes:,} bytes as '{first[content]}'",
                        "let both readers use one initializer",
                        name,
                        severity="warning",
                    )
                first.setdefault(content, name)

    def mend(self, graph: ir.Model, target: Target) -> int:
        """Drop what nobody reads, and let equal weights be one."""
        from coldpress.graphs.edits import drop_unread_value
        from coldpress.graphs.imported.simplify import share_equal_tensors

        before = sum(len(inner.initializers) for inner in graph.graphs())
        for inner in graph.graphs():
            for value in list(inner.initializers.values()):
                drop_unread_value(inner, value)
        share_equal_tensors(graph)
        return before - sum(len(inner.initializers) for inner in graph.graphs())
