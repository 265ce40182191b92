"""Inputs of which nobody knows how many axes they have: providers that compile graphs leave them to the processor, and
nothing that asks for shapes can be fused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.parts import Finding, Rule
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class MissingShapes(Rule):
    """Inputs without a shape."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        for value in graph.graph.inputs:
            if value.shape is None and _is_tensor(value):
                yield Finding(
                    "the input has no shape",
                    "note its axes, open ones by name: export it with them",
                    str(value.name),
                    severity="warning",
                )


def _is_tensor(value: ir.Value) -> bool:
    import onnx_ir as ir

    return value.type is None or isinstance(value.type, ir.TensorType)
