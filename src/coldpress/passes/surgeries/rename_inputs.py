"""Give inputs of a graph other names; who feeds it uses these afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.parts import option
from coldpress.parts.surgery import Surgery, check_pairs, end_named, ends_by_name

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class RenameInputs(Surgery):
    """Give inputs of a graph other names."""

    old_names: tuple[str, ...] = option("names of inputs", ())
    new_names: tuple[str, ...] = option("their new names, in the same order", ())

    @property
    def renamed(self) -> Mapping[str, str]:
        return dict(zip(self.old_names, self.new_names, strict=False))

    def check(self, model: ir.Model) -> None:
        check_pairs(self, "old_names", "new_names")
        for name in self.old_names:
            end_named(name, ends_by_name(model.graph.inputs), "input")

    def operate(self, model: ir.Model) -> int:
        ends = ends_by_name(model.graph.inputs)
        for old, new in self.renamed.items():
            ends[old].name = new
        return len(self.renamed)
