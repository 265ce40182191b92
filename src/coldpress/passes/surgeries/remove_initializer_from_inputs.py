"""Let weights be constants: initializers that are inputs, too, may be fed, so no runtime folds or packs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RemoveInitializerFromInputs(Surgery):
    """Let initializers that are inputs, too, be constants."""

    def operate(self, model: ir.Model) -> int:
        both = [value for value in model.graph.inputs if value.is_initializer()]
        for value in both:
            model.graph.inputs.remove(value)
        return len(both)
