"""Takes and gives what no ONNX pass takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coldpress import Context, Model, Pass


@dataclass(frozen=True)
class Unpack(Pass):
    """From GGUF to a Hugging Face folder."""

    accepts: ClassVar[tuple[str, ...]] = ("gguf",)
    produces: ClassVar[str] = "hf"

    def run(self, model: Model, ctx: Context) -> Model:
        raise NotImplementedError
