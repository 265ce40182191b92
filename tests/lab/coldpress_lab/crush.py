"""Makes a model smaller, and worse."""

from __future__ import annotations

from dataclasses import dataclass, field
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
        return Model(write(ctx.scratch, {**settings(model.path), "bits": self.bits}), "onnx", "")
