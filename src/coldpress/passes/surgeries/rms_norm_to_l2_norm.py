"""Write a norm of the root mean square, spelled out in single operators, as LpNormalization and a product.

``x / sqrt(mean(x^2) + epsilon) * w`` is ``x / |x| * (sqrt(n) * w)`` where ``epsilon`` is small beside the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.edits import give_instead
from coldpress.graphs.norms import l2_norm, spelled_out_rms_norms
from coldpress.graphs.shapes import infer_shapes
from coldpress.parts import Closeness
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RmsNormToL2Norm(Surgery):
    """Write norms of the root mean square as LpNormalization and a product."""

    closeness = Closeness(0.01, "the epsilon of the norm is left out")

    def operate(self, model: ir.Model) -> int:
        infer_shapes(model)
        found = list(spelled_out_rms_norms(model))
        for norm in found:
            give_instead(norm.last, l2_norm(norm.last, norm.values, norm.columns))
        return len(found)
