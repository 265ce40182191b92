"""Writes a graph that is off by a given share, that takes a given number of rows, or that nothing can open."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coldpress import Context, Model, Pass
from coldpress.parts import Closeness


@dataclass(frozen=True)
class Spoil(Pass):
    """Multiplies the output by ``1 + share``, and may break more."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    share: float = field(default=0.0, metadata={"help": "how far the output is off"})
    breaks: str = field(default="", metadata={"help": "what breaks", "choices": ("", "open", "run", "output")})

    @property
    def closeness(self) -> Closeness:
        return Closeness(0.1, "a tenth is what spoiling may cost")

    def run(self, model: Model, ctx: Context) -> Model:
        made = onnx.load(model.path / "model.onnx")
        graph, name = made.graph, made.graph.output[0].name
        for node in graph.node:
            for place, output in enumerate(node.output):
                if output == name:
                    node.output[place] = "unspoiled"
        last = "Nothing" if self.breaks == "open" else "Reshape" if self.breaks == "run" else "Mul"
        factor = np.array([7, 7, -1]) if last == "Reshape" else np.float32(1 + self.share)
        graph.initializer.append(numpy_helper.from_array(factor, "share"))
        graph.node.append(helper.make_node(last, ["unspoiled", "share"], [name]))
        if self.breaks == "output":
            graph.node[-1].output[0] = graph.output[0].name = "other"
        return Model(_saved(made, ctx.scratch), "onnx", "")


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    del model.graph.value_info[:]
    onnx.save(model, folder / "model.onnx")
    return folder
