"""Give an axis of an input another name, or a size: equal names say that axes have equal sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.parts import option
from coldpress.parts.surgery import Surgery, end_named, ends_by_name, name_axis

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RenameInputDims(Surgery):
    """Give an axis of an input another name, or a size."""

    input_name: str = option("name of the input", "")
    dim_idx: int = option("which of its axes, from 0", 0)
    dim_name: str | int = option("name of the axis, or its size", "batch")

    def check(self, model: ir.Model) -> None:
        end_named(self.input_name, ends_by_name(model.graph.inputs), "input", self.dim_idx)

    def operate(self, model: ir.Model) -> int:
        name_axis(ends_by_name(model.graph.inputs)[self.input_name], self.dim_idx, self.dim_name)
        return 1
