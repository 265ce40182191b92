"""Turns some dials of a model; the dial ``broken`` breaks the pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import ClassVar

from coldpress import ColdpressError, Context, Model, Pass, Planned, Target
from coldpress_lab import log, settings, write


@dataclass(frozen=True)
class Dial(Pass):
    """Turns some dials."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    x: float = field(default=0.5, metadata={"help": "the first dial"})
    y: int = field(default=1, metadata={"help": "the second dial"})
    mode: str = field(default="plain", metadata={"help": "the third", "choices": ("plain", "fancy", "broken")})
    extra: int | None = field(default=None, metadata={"help": "only for the fancy mode"})
    tags: tuple[str, ...] = field(default=(), metadata={"help": "words that are kept"})

    def check(self, model: Model | Planned, target: Target) -> None:
        if self.extra is not None and self.mode != "fancy":
            raise ColdpressError("extra has no effect without the fancy mode", hint="use mode fancy")

    def run(self, model: Model, ctx: Context) -> Model:
        log(f"dial {asdict(self)}")
        if self.mode == "broken":
            raise RuntimeError("the dial came off")
        return Model(write(ctx.scratch, {**settings(model.path), **asdict(self)}), "onnx", "")
