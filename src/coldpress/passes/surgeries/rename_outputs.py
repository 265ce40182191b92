"""Give outputs of a graph other names; who runs it asks for these afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from coldpress.parts.surgery import Renaming

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RenameOutputs(Renaming):
    """Give outputs of a graph other names."""

    what: ClassVar[str] = "output"

    def ends(self, model: ir.Model) -> Sequence[ir.Value]:
        return model.graph.outputs
