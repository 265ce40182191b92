"""Rewrite an ONNX graph for another opset, newer or older.

onnxscript's converter goes to newer opsets; where it cannot, and for older ones, that of onnx is used. An opset that an
operator of the graph does not have is refused. Tensors stay in their files.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.foreign.folder import load_graph, rewrite_graphs, save_graph
from coldpress.model import Model
from coldpress.parts import Context, Pass, option
from coldpress.target import Target

_OLDEST = 7


@dataclass(frozen=True)
class OnnxOpsetConversion(Pass):
    """Rewrite an ONNX graph for another opset, newer or older."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    needs: ClassVar[tuple[str, ...]] = ("onnxscript",)

    target_opset: int = option("version of ONNX's operators", 21)

    def check(self, model: Model, target: Target) -> None:
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
            converted = self._converted(graph, file)
            save_graph(converted, target)
            remarks.append(f"{target.name}: opset {before} became {self.target_opset}")

        rewrite_graphs(model.path, ctx.scratch, change)
        return Model(ctx.scratch, "onnx", "", {**model.notes, "warnings": [*model.notes.get("warnings", []), *remarks]})

    def _converted(self, model: Any, file: Path) -> Any:
        from onnxscript.version_converter import convert_version

        before = model.opset_imports.get("")
        logger, reasons = logging.getLogger("onnxscript.version_converter"), _Reasons()
        logger.addHandler(reasons)
        spreads, logger.propagate = logger.propagate, False
        try:
            convert_version(model, self.target_opset, fallback=True)
        except Exception as error:  # the converters' errors have no common base
            raise self._impossible(file, before, str(error)) from error
        finally:
            logger.removeHandler(reasons)
            logger.propagate = spreads
        if model.opset_imports.get("") != self.target_opset:
            raise self._impossible(file, before, reasons.last or "an operator has no form there")
        return model

    def _impossible(self, file: Path, before: int | None, why: str) -> ColdpressError:
        return ColdpressError(
            f"{file.name} cannot be converted from opset {before} to {self.target_opset}: {why}",
            hint="choose a newer opset, or export the model with the one you want",
            exit_code=WORK_FAILED,
        )


class _Reasons(logging.Handler):
    """Keeps the last error that the converter only logs."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.last = str(record.exc_info[1]).rpartition("failed: ")[2]
