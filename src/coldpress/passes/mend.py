"""Put right what rules find in an ONNX graph, where that does not change what it computes: `coldpress lint --fix`.

Slow encodings of few bits, doubled and unread weights, embeddings stored twice, casts and transposes that undo each
other, layer norms in single operators, constants that are computed at every run, an IR version that is too new. What a
rule has no remedy for stays; `coldpress lint` says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from coldpress.graphs.shapes import infer_shapes
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import SAME, Closeness, Rule, find, names, option
from coldpress.parts.graph_pass import GraphContext, GraphPass, Rewritten
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

#: the rule whose remedy rounds
_ROUNDING = "block_quantized_products"


@dataclass(frozen=True)
class Mend(GraphPass):
    """Put right what rules find in an ONNX graph, where that does not change what it computes."""

    needs: ClassVar[tuple[str, ...]] = ("onnxscript",)

    rules: tuple[str, ...] = option("names of the rules; default: all", ())
    runtime: str | None = option("version of ONNX Runtime that shall load the graph; default: the installed one", None)

    @property
    def closeness(self) -> Closeness:
        if _ROUNDING in (self.rules or (_ROUNDING,)):
            return Closeness(0.05, "products of few bits that are made fast round their inputs to 8 bits")
        return SAME

    def check(self, model: Model | Planned, target: Target) -> None:
        for name in self.rules:
            find("rules", name)
        super().check(model, target)

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        changed = {}
        for name, rule in rules(self.runtime).items():
            if self.rules and name not in self.rules:
                continue
            infer_shapes(graph)
            if count := rule.mend(graph, ctx.target):
                changed[name] = count
        said = [f"{name}: {count} put right" for name, count in changed.items()] or ["there was nothing to put right"]
        return Rewritten(graph, tuple(said))


def rules(runtime: str | None = None) -> Mapping[str, Rule]:
    """Every rule by its name, for a version of the runtime where that matters."""
    made: dict[str, Rule] = {}
    for name in names("rules"):
        part = find("rules", name)
        given: dict[str, Any] = {"runtime": runtime} if "runtime" in part.__dataclass_fields__ else {}
        made[name] = part(**given)
    return made
