"""Give an axis of an output another name: exporters leave names such as ``s77*s90`` there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.errors import ColdpressError
from coldpress.parts import option
from coldpress.parts.surgery import Surgery, end_named, ends_by_name, name_axis

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RenameOutputDims(Surgery):
    """Give an axis of an output another name."""

    output_idx: int = option("which output, from 0", 0)
    dim_idx: int = option("which of its axes, from 0", 0)
    dim_name: str = option("name of the axis", "batch")

    def check(self, model: ir.Model) -> None:
        outputs = model.graph.outputs
        if not 0 <= self.output_idx < len(outputs):
            raise ColdpressError(f"output_idx {self.output_idx}: the graph has {len(outputs)} outputs, from 0 on")
        end_named(str(outputs[self.output_idx].name), ends_by_name(outputs), "output", self.dim_idx)

    def operate(self, model: ir.Model) -> int:
        name_axis(model.graph.outputs[self.output_idx], self.dim_idx, self.dim_name)
        return 1
