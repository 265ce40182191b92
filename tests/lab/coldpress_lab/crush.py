"""Makes a model smaller, and worse."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from coldpress import Context, Model, Pass
from coldpress_lab import log, settings, write


@dataclass(frozen=True)
class Crush(Pass):
    """Makes a model smaller."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    bits: int = field(default=8, metadata={"help": "bits that are left", "choices": (2, 4, 8)})

    def run(self, model: Model, ctx: Context) -> Model:
        log(f"crush {self.bits}")
        made = write(ctx.scratch, {**settings(model.path), "bits": self.bits})
        known = model.provenance
        return Model(made, "onnx", "", replace(known, extra={**known.extra, "crush": {"bits": self.bits}}))
