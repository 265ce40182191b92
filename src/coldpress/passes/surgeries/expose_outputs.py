"""Let a graph give what nodes inside it compute, beside its own outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.shapes import infer_shapes
from coldpress.parts import option
from coldpress.parts.surgery import Surgery, check_names

if TYPE_CHECKING:
    import onnx_ir as ir

_SHOWN = 200


@dataclass(frozen=True)
class ExposeOutputs(Surgery):
    """Let a graph give what nodes inside it compute."""

    names: tuple[str, ...] = option("names of nodes", ())

    def check(self, model: ir.Model) -> None:
        check_names(self.names)
        known = [str(node.name) for node in model.graph]
        for name in self.names:
            if name not in known:
                raise ColdpressError(f"there is no node '{name}'", hint=did_you_mean(name, known[:_SHOWN]))

    def operate(self, model: ir.Model) -> int:
        infer_shapes(model)
        named = [node for node in model.graph if node.name in self.names]
        values = [value for node in named for value in node.outputs if value.name and not value.is_graph_output()]
        model.graph.outputs.extend(values)
        return len(values)
