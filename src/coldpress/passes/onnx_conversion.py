"""Turn a PyTorch module into ONNX: one that a script makes, a saved program of torch.export, or TorchScript.

The script runs in a process of its own. It has ``_model_loader(model_path)`` and either ``_dummy_inputs(model)``, an
example of what the module takes, or ``_io_config``, a mapping with ``input_names``, ``input_shapes``, ``input_types``,
``output_names`` and ``dynamic_axes``. Axes that nobody declared are found by trying other sizes: that of samples, and
that of tokens. The graph is compared with the module on its example and on other sizes of its open axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from coldpress.errors import ColdpressError
from coldpress.graphs.capture.module import ModuleOptions, loading_of
from coldpress.graphs.capture.module_worker import export
from coldpress.models.model import MODULES, Model
from coldpress.models.planned import Planned
from coldpress.parts import Context, Pass, option
from coldpress.target import Target

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class OnnxConversion(ModuleOptions, Pass):
    """Turn a PyTorch module into ONNX: one that a script makes, a saved program of torch.export, or TorchScript."""

    accepts: ClassVar[tuple[str, ...]] = MODULES
    is_verified: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("torch", "onnxscript")

    precision: str = option("type of numbers that the module computes in", "fp32", ("fp32", "fp16"))
    script_seconds: float = option("how long the script may take to load its module and run it once", 600.0)

    def check(self, model: Model | Planned, target: Target) -> None:
        if self.script_seconds <= 0:
            raise ColdpressError(f"script_seconds: {self.script_seconds:g} is no time", hint="such as 600")
        if isinstance(model, Model):
            self._check_source(model.format, model.path)

    def _check_source(self, kind: str, path: Path) -> None:
        if kind == "script":
            self.require_in(path)
            return
        usual = OnnxConversion()
        if isinstance(self.io_config, str) and self.io_config != usual.io_config:
            raise ColdpressError(
                f"io_config: {path.name} is no script that has '{self.io_config}'", hint="write it out"
            )
        if kind == "pt2" and isinstance(self.io_config, Mapping) and self.io_config.keys() - {"output_names"}:
            raise ColdpressError(
                f"io_config: {path.name} says itself what it takes; only output_names has an effect",
                hint="leave the rest out",
            )
        for one in fields(ModuleOptions):
            if one.name != "io_config" and getattr(self, one.name) != getattr(usual, one.name):
                raise ColdpressError(
                    f"{one.name} has no effect on {path.name}, which is no script",
                    hint="name the script as the model, and this file as model_path",
                )

    def foretold(self, model: Model | Planned) -> Model | Planned:
        return Planned("onnx", replace(model.provenance, precision=self.precision))

    def run(self, model: Model, ctx: Context) -> Model:
        ctx.progress("exporting the module", 0, 0)
        request = {"precision": self.precision, "options": loading_of(self)}
        learned = export(model, request, ctx.scratch, self.script_seconds)
        known = model.provenance
        source = replace(known.source, weights=learned["weights"])
        made = replace(known, source=source, precision=self.precision).remarked(*learned["remarks"])
        return Model(ctx.scratch, "onnx", "", made)
