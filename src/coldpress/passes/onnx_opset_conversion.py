"""Rewrite an ONNX graph for another opset, newer or older.

onnxscript's converter goes to newer opsets; where it cannot, and for older ones, that of onnx is used. An opset that an
operator of the graph does not have is refused. Tensors stay in their files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from coldpress.errors import ColdpressError
from coldpress.graphs.imported.folder import load_graph, rewrite_graphs, save_graph
from coldpress.graphs.imported.opset import convert
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import SAME, Closeness, Context, Pass, option
from coldpress.target import Target

_OLDEST = 7


@dataclass(frozen=True)
class OnnxOpsetConversion(Pass):
    """Rewrite an ONNX graph for another opset, newer or older."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("onnxscript",)

    target_opset: int = option("version of ONNX's operators", 21)

    @property
    def closeness(self) -> Closeness:
        return SAME

    def check(self, model: Model | Planned, target: Target) -> None:
        from onnx.defs import onnx_opset_version

        newest = onnx_opset_version()
        if not _OLDEST <= self.target_opset <= newest:
            raise ColdpressError(
                f"target_opset: there is no opset {self.target_opset} in this version of onnx",
                hint=f"one from {_OLDEST} to {newest}",
            )

    def run(self, model: Model, ctx: Context) -> Model:
        remarks: list[str] = []

        def change(file: Path, target: Path) -> None:
            ctx.progress(f"converting {file.name}", 0, 1)
            graph = load_graph(file)
            before = graph.opset_imports.get("")
            convert(graph, self.target_opset, file.name)
            save_graph(graph, target)
            remarks.append(f"{target.name}: opset {before} became {self.target_opset}")

        rewrite_graphs(model.path, ctx.scratch, change)
        return Model(ctx.scratch, "onnx", "", model.provenance.remarked(*remarks))
