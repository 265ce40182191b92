"""Rotate the residual stream and the values of a network, folded into its weights: it computes what it did.

Outliers are what a block's grid is worst at, and a rotation spreads them over all channels, as in QuaRot
(https://arxiv.org/abs/2404.00456). Only the rotations that cost nothing at run time are done. With small groups it
gains little: measure it against the same algorithm without.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

from coldpress.model import Model
from coldpress.parts import Context, Pass
from coldpress.target import Target


@dataclass(frozen=True)
class Rotate(Pass):
    """Rotate the residual stream and the values of a network, folded into its weights: it computes what it did."""

    accepts: ClassVar[tuple[str, ...]] = ("hf",)
    produces: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    trust_remote_code: bool = field(default=False, metadata={"help": "run model code that comes with the model"})

    def check(self, model: Model, target: Target) -> None:
        from coldpress.networks.rotation import check_rotation

        if (model.path / "config.json").is_file():
            check_rotation(json.loads((model.path / "config.json").read_text(encoding="utf-8")))

    def run(self, model: Model, ctx: Context) -> Model:
        import numpy as np

        from coldpress.networks.layerwise import Layerwise
        from coldpress.networks.rotation import rotate_checkpoint

        decoder = Layerwise(model.path, np.zeros((1, 8), np.int64), trust_remote_code=self.trust_remote_code)
        with ctx.kept("rotate", {"model": model.key, "seed": ctx.seed}) as work:
            rotate_checkpoint(decoder, ctx.scratch, work, ctx.seed, ctx.progress)
        return Model(ctx.scratch, "hf", "", dict(model.notes))
