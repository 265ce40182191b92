"""Norms in single operators: each reads and writes the whole tensor, where one operator does it once.

ONNX Runtime fuses the usual spellings when it loads a graph; other runtimes, and providers that compile, do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.graphs.norms import spelled_out_layer_norms, spelled_out_rms_norms, write_layer_norm
from coldpress.parts import Finding, Rule, place_of
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

#: the oldest one with LayerNormalization
_OPSET = 17


@dataclass(frozen=True)
class SpelledOutNorms(Rule):
    """Layer norms, and norms of the root mean square, in single operators."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        layer_norms = list(spelled_out_layer_norms(graph))
        rms_norms = list(spelled_out_rms_norms(graph))
        within = {norm.quotient for norm in layer_norms}
        kinds = {
            "layer norm": [norm.last for norm in layer_norms],
            "norm of the root mean square": [norm.last for norm in rms_norms if norm.last not in within],
        }
        for kind, nodes in kinds.items():
            if nodes:
                yield Finding(
                    f"a {kind} in single operators",
                    "fuse it: the pass ort_transformers_optimization, or the exporter with opset 17 or newer",
                    place_of(nodes),
                    severity="warning",
                )

    def mend(self, graph: ir.Model, target: Target) -> int:
        """Write layer norms as LayerNormalization; ONNX has no other norm before opset 23."""
        if graph.opset_imports.get("", 0) < _OPSET:
            return 0
        found = list(spelled_out_layer_norms(graph))
        for norm in found:
            write_layer_norm(norm)
        return len(found)
