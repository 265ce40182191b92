"""As spoil, but it rewrites graphs in memory, together with its neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coldpress import GraphContext, GraphPass, Rewritten
from coldpress.parts import Closeness
from coldpress_lab import log

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Tilt(GraphPass):
    """Multiplies the output ``y`` by ``1 + share``, and may break more."""

    share: float = field(default=0.0, metadata={"help": "how far the output is off"})
    breaks: str = field(default="", metadata={"help": "what breaks", "choices": ("", "open", "run")})
    means_it: bool = field(default=False, metadata={"help": "that is what the pass is for"})

    @property
    def closeness(self) -> Closeness | None:
        return None if self.means_it else Closeness(0.1, "a tenth is what tilting may cost")

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        import onnx_ir as ir

        log(f"tilt {self.share}")
        output = next(value for value in graph.graph.outputs if value.name == "y")
        last = {"open": "Nothing", "run": "Reshape"}.get(self.breaks, "Mul")
        values = np.array([7, 7, -1]) if last == "Reshape" else np.float32(1 + self.share)
        factor = ir.val(f"factor_{self.share}", const_value=ir.tensor(values, name=f"factor_{self.share}"))
        graph.graph.register_initializer(factor)
        node = ir.node(last, [output, factor], name=f"tilt_{self.share}")
        made = node.outputs[0]
        made.type, made.shape, made.name, output.name = output.type, output.shape, "y", f"before_tilt_{self.share}"
        graph.graph.append(node)
        graph.graph.outputs[list(graph.graph.outputs).index(output)] = made
        return Rewritten(graph, (f"tilted by {self.share:g}",))
