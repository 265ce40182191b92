"""Graphs that are newer than the runtime that shall load them: it refuses an unknown IR version or opset.

Which it knows is in ONNX Runtime's table of versions (https://onnxruntime.ai/docs/reference/compatibility.html).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.errors import ColdpressError
from coldpress.parts import Finding, Rule, option
from coldpress.parts.needs import installed_version
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

#: version of ONNX Runtime -> newest IR version and opset that it loads
_LOADS = {
    (1, 8): (7, 14), (1, 10): (8, 15), (1, 12): (8, 17), (1, 14): (8, 18), (1, 15): (8, 19), (1, 17): (9, 20),
    (1, 18): (10, 21), (1, 21): (10, 22), (1, 22): (10, 23), (1, 23): (11, 23), (1, 24): (12, 24), (1, 26): (13, 26),
}  # fmt: skip


@dataclass(frozen=True)
class NewerThanRuntime(Rule):
    """An IR version or an opset that the runtime does not know."""

    runtime: str | None = option("version of ONNX Runtime; default: the installed one", None)

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        name, (ir_version, opset) = self._runtime, self._loads
        own = graph.opset_imports.get("", 0)
        if graph.ir_version > ir_version:
            yield Finding(
                f"IR version {graph.ir_version}; onnxruntime {name} loads up to {ir_version}",
                f"write it with IR version {ir_version}, or use a newer onnxruntime",
            )
        if own > opset:
            yield Finding(
                f"opset {own}; onnxruntime {name} loads up to {opset}",
                f"convert it: the pass onnx_opset_conversion with target_opset {opset}",
            )

    def mend(self, graph: ir.Model, target: Target) -> int:
        """Lower the IR version, which only says how the file is written, unless the opset needs the newer one."""
        ir_version, opset = self._loads
        if graph.ir_version <= ir_version or graph.opset_imports.get("", 0) > opset:
            return 0
        graph.ir_version = ir_version
        return 1

    @property
    def _runtime(self) -> str:
        return self.runtime or installed_version("onnxruntime") or ".".join(map(str, max(_LOADS)))

    @property
    def _loads(self) -> tuple[int, int]:
        try:
            version = tuple(int(number) for number in self._runtime.split(".")[:2])
        except ValueError:
            raise ColdpressError(f"runtime: '{self._runtime}' is no version", hint="such as 1.20") from None
        known = [one for one in _LOADS if one <= version]
        if not known:
            raise ColdpressError(f"nothing is known of onnxruntime {self._runtime}", hint="versions from 1.8 on")
        return _LOADS[max(known)]
