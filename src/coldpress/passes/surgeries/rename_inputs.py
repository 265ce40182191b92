"""Give inputs of a graph other names; who feeds it uses these afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from coldpress.parts.surgery import Renaming

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RenameInputs(Renaming):
    """Give inputs of a graph other names."""

    what: ClassVar[str] = "input"

    def ends(self, model: ir.Model) -> Sequence[ir.Value]:
        return model.graph.inputs
