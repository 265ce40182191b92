"""Take the text model out of a multimodal checkpoint, as a Hugging Face folder of its own.

Tensors are copied as they are, packed ones too; the parts that see or hear are left out and named in the report. Later
passes, and the comparison with the source, go by this folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of, weights_of
from coldpress.parts import Context, Pass, option
from coldpress.target import Target


@dataclass(frozen=True)
class TakeTextModel(Pass):
    accepts: ClassVar[tuple[str, ...]] = ("multimodal",)
    produces: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("transformers",)

    trust_remote_code: bool = option("run configuration code that comes with the model", False)

    def check(self, model: Model | Planned, target: Target) -> None:
        """Refuse a text model that cannot be pressed, before its weights are copied."""
        from coldpress.graphs.trust import require_right

        if (folder := settings_of(model)) is not None:
            require_right(folder, trust_remote_code=self.trust_remote_code)

    def foretold(self, model: Model | Planned) -> Planned:
        return Planned("hf", model.provenance, settings_of(model), weights_of(model))

    def run(self, model: Model, ctx: Context) -> Model:
        from coldpress.models.text_part import take_text_model

        ctx.progress("taking the text model", 0, 1)
        take_text_model(model.path, ctx.scratch, trust_remote_code=self.trust_remote_code)
        return Model(ctx.scratch, "hf", "", model.provenance)
