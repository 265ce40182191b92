"""Rotate the residual stream and the values of a network, folded into its weights: it computes what it did.

Outliers are what a block's grid is worst at, and a rotation spreads them over all channels, as in QuaRot
(https://arxiv.org/abs/2404.00456). Only the rotations that cost nothing at run time are done. ``quarot`` turns at
random; ``spinquant`` learns the rotation of the stream for the grid that the weights will be rounded to, from the Gram
matrices of their inputs (quant/learned_rotation.py). With small groups a random rotation gains little, or loses:
measure it against the same algorithm without.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of
from coldpress.parts import Context, DataSource, Pass, option
from coldpress.target import Target

if TYPE_CHECKING:
    from coldpress.calibration.rotation import Rotations
    from coldpress.networks.layerwise import Layerwise
    from coldpress.quant.rotate import Doubles

ROTATIONS = ("quarot", "spinquant")
_UNTIED = "The rotation made the head a matrix of its own: it and the token embedding were one in the source."

_SETTLED = "Not rotated: the weights lie on a grid of 4 bits already, which a rotation would take them off."


@dataclass(frozen=True)
class Rotate(Pass):
    """Rotate the residual stream and the values of a network, folded into its weights: it computes what it did."""

    accepts: ClassVar[tuple[str, ...]] = ("hf",)
    produces: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    version: ClassVar[int] = 3

    rotation: str = option("quarot is random, spinquant learned", "quarot", ROTATIONS)
    group_size: int = option("group size that a rotation is learned for", 32, (16, 32, 64, 128, 256))
    symmetric: bool = option("learn it for a grid without zero points", False)
    data: DataSource | None = option(
        "what to learn from: any data with input_ids; default: calibration_text, the text that coldpress ships", None
    )
    max_memory: float | None = option("gigabytes that running the network on the data may take", None)
    trust_remote_code: bool = option("run model code that comes with the model", False)

    def check(self, model: Model | Planned, target: Target) -> None:
        from coldpress.calibration.rotation import check_rotation

        if self.rotation == "quarot":
            for entry in fields(self):
                if entry.name not in ("rotation", "trust_remote_code") and getattr(self, entry.name) != entry.default:
                    raise ColdpressError(
                        f"{entry.name} has no effect with the rotation quarot, which is random",
                        hint="use spinquant, which is learned",
                    )
        if self.data is not None:
            self.data.make().check(model)
        if (folder := settings_of(model)) is not None:
            check_rotation(json.loads((folder / "config.json").read_text(encoding="utf-8")))

    def foretold(self, model: Model | Planned) -> Planned:
        return Planned("hf", replace(model.provenance, rotation=self.rotation), settings_of(model))

    def run(self, model: Model, ctx: Context) -> Model:
        import numpy as np
        import torch

        from coldpress.calibration.rotation import Rotations, rotate_checkpoint
        from coldpress.data.batches.calibration import SHIPPED, windows
        from coldpress.networks.layerwise import Layerwise

        torch.set_num_threads(ctx.target.thread_count)
        text = windows(self.data or SHIPPED, model, ctx) if self.rotation == "spinquant" else None
        ids = np.zeros((1, 8), np.int64) if text is None else text.ids
        device = "cuda" if ctx.target.device == "gpu" and torch.cuda.is_available() else "cpu"
        decoder = Layerwise(model.path, ids, device=device, trust_remote_code=self.trust_remote_code)
        if self._is_settled(decoder):
            return replace(model, provenance=model.provenance.remarked(_SETTLED))
        rotations = Rotations.random(decoder, ctx.seed)
        facts: dict[str, Any] = {"pass": self.version, "model": model.key, "seed": ctx.seed}
        if text is not None:
            facts |= {"text": text.digest, "group_size": self.group_size, "symmetric": self.symmetric}
            rotations = replace(rotations, stream=self._learned(decoder, rotations, facts, ctx))
        with ctx.kept("rotate", facts) as work:
            rotate_checkpoint(decoder, ctx.scratch, work, rotations, ctx.progress)
        provenance = replace(model.provenance, rotation=self.rotation)
        return Model(ctx.scratch, "hf", "", provenance.remarked(*([_UNTIED] if decoder.is_tied else [])))

    def _is_settled(self, decoder: Layerwise) -> bool:
        """Whether all weights of the layers lie on the grid already."""
        from coldpress.quant.grid import Grid
        from coldpress.quant.lattice import seems_on_lattice

        grid = Grid(4, self.group_size, self.symmetric)
        weights = ((decoder.weights(layer), name) for layer in decoder.layers for name in decoder.linears(layer))
        return all(seems_on_lattice(own[f"{name}.weight"], grid) for own, name in weights)

    def _learned(self, decoder: Layerwise, start: Rotations, facts: Mapping[str, Any], ctx: Context) -> Doubles:
        """The rotation of the stream; it and the Gram matrices it is learned from are kept."""
        import numpy as np

        from coldpress.calibration.grams import collect
        from coldpress.calibration.learned_rotation import StreamLearner
        from coldpress.calibration.rotation import stream_of
        from coldpress.quant.grid import Grid

        grid = Grid(4, self.group_size, self.symmetric)
        decoder.batch = decoder.windows_at_once(self.max_memory)
        with ctx.kept("rotation", facts) as folder:
            file = folder / "stream.npy"
            if not file.is_file():
                with ctx.kept("grams", {"model": facts["model"], "text": facts["text"]}) as kept:
                    grams = collect(decoder, kept, ctx.progress)
                    learner = StreamLearner(decoder, stream_of(decoder), grams, start.heads)
                    learned = learner.learn(start.stream, grid, ctx.seed, ctx.progress)
                np.save(folder / "stream.part.npy", learned)
                os.replace(folder / "stream.part.npy", file)
            found: Doubles = np.load(file)
        return found
