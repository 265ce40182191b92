"""Hide positions by a number that has room in few bits, instead of the least float or minus infinity.

The constants that an exporter makes masks of are as small as floats get, and so the range of a quantized mask holds
nothing else. Behind a softmax, -10000 hides a position as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.graphs.queries import is_onnx
from coldpress.models.onnx_graphs import array_of
from coldpress.parts import option
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir

#: larger constants are weights: the mask of 4096 positions among themselves
_MOST = 4096 * 4096
_FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
#: what float16 holds, nearly: no mask is larger there
_HALF = 6e4


@dataclass(frozen=True)
class ReplaceAttentionMaskValue(Surgery):
    """Hide positions by a number that has room in few bits."""

    threshold: float = option("constants below this are replaced", -3e30)
    replacement: float = option("what they become", -1e4)

    def check(self, model: ir.Model) -> None:
        if not self.threshold < self.replacement < 0:
            raise ColdpressError(
                f"replacement {self.replacement:g} does not lie between threshold {self.threshold:g} and 0",
                hint="it is added to scores, to hide positions: -10000 does, -100 mostly",
            )

    def operate(self, model: ir.Model) -> int:
        changed = 0
        for graph in model.graphs():
            for value in graph.initializers.values():
                if (tensor := self._replaced(value.const_value)) is not None:
                    value.const_value, changed = tensor, changed + 1
        for node in model.graph.all_nodes():
            given = node.attributes.get("value") if is_onnx(node, "Constant", "ConstantOfShape") else None
            if given is not None and (tensor := self._replaced(given.as_tensor())) is not None:
                node.attributes.add(_attribute(tensor))
                node.outputs[0].const_value, changed = None, changed + 1
        return changed

    def _replaced(self, tensor: Any) -> ir.Tensor | None:
        """A tensor of floats with its numbers below the threshold replaced, minus infinity too; None without any."""
        import onnx_ir as ir

        if tensor is None or tensor.dtype.name not in _FLOATS or tensor.size > _MOST:
            return None
        is_half = tensor.dtype.name == "FLOAT16"
        values = array_of(tensor)
        hidden = values.astype(np.float64) < (max(self.threshold, -_HALF) if is_half else self.threshold)
        if not hidden.any():
            return None
        replacement = max(self.replacement, -_HALF) if is_half else self.replacement
        return ir.Tensor(np.where(hidden, replacement, values).astype(values.dtype), name=tensor.name)


def _attribute(tensor: ir.Tensor) -> ir.Attr:
    import onnx_ir as ir

    return ir.AttrTensor("value", tensor)
