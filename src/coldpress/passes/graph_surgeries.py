"""Change an ONNX graph by surgeries that are known by name, one after the other: rename inputs, outputs and axes, write
operators as others, share weights.

`coldpress list` names them, and `coldpress show NAME` tells what one does. The result is compared with the graph
before, by the new names where some changed. A surgery that finds nothing to do is named in a remark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Closeness, option, renamed_in_a_row
from coldpress.parts.graph_pass import GraphContext, GraphPass, Rewritten
from coldpress.parts.surgery import Operation, Surgery
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class GraphSurgeries(GraphPass):
    """Change an ONNX graph by surgeries that are known by name, one after the other."""

    needs: ClassVar[tuple[str, ...]] = ("onnx-ir",)

    surgeries: tuple[Operation, ...] = option("what is done, in this order: names, or names with parameters", ())

    @property
    def closeness(self) -> Closeness | None:
        limits = [one.closeness for one in self._made]
        known = [limit for limit in limits if limit is not None]
        if len(known) < len(limits):
            return None
        widest = max(known, key=lambda limit: limit.relative, default=None)
        return widest and Closeness(sum(limit.relative for limit in known), widest.why)

    @property
    def renamed(self) -> Mapping[str, str]:
        return renamed_in_a_row(self._made)

    @property
    def _made(self) -> list[Surgery]:
        return [one.make(f"surgeries[{place}]") for place, one in enumerate(self.surgeries)]

    def check(self, model: Model | Planned, target: Target) -> None:
        if not self._made:
            raise ColdpressError(
                "no surgery is named", hint="--surgeries tie_word_embeddings; `coldpress list` names all"
            )
        super().check(model, target)

    def check_graphs(self, graphs: Mapping[str, ir.Model], target: Target) -> None:
        """Check the first surgery; what later ones find depends on those before."""
        for one in graphs.values():
            self._made[0].check(one)

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        said = []
        for operation, one in zip(self.surgeries, self._made, strict=True):
            one.check(graph)
            if not one.operate(graph):
                said.append(f"{operation.type} found nothing to do")
        return Rewritten(graph, tuple(said))
