"""Add an adapter to the weights of its base: a Hugging Face folder comes out, of the same format and types.

PEFT does the sums for every method that it can merge (LoRA, DoRA, LoHa, LoKr, ...). Layers that are quantized in the
base are added to in float32 and rounded again on their own grid, since a sum of codes and floats lies between the
codes; what that changes is in the report. Serving the adapter beside its base (``auto-opt --adapter_path``) changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from coldpress.errors import ColdpressError, NotAtHand
from coldpress.models import adapter_folder
from coldpress.models.model import Model
from coldpress.models.peft import check_kind
from coldpress.models.planned import Planned, adapters_of, settings_of, weights_of
from coldpress.parts import Context, Pass, option
from coldpress.target import Target


@dataclass(frozen=True)
class MergeAdapterWeights(Pass):
    """Add an adapter to the weights of its base: a Hugging Face folder comes out, of the same format and types."""

    accepts: ClassVar[tuple[str, ...]] = ("adapter", "hf")
    produces: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "peft")
    reads: ClassVar[tuple[str, ...]] = ("adapter_path",)
    is_verified: ClassVar[bool] = True
    version: ClassVar[int] = 2

    adapter_path: str | None = option("a PEFT folder, for a base that has none beside it", None)
    trust_remote_code: bool = option("run model code that comes with the model", False)

    def check(self, model: Model | Planned, target: Target) -> None:
        if self.adapter_path is not None and not Path(self.adapter_path).is_dir():
            raise NotAtHand(f"adapter_path: '{self.adapter_path}' is no folder", hint="pass a PEFT folder")
        is_trained_first = model.format == "adapter" and not adapters_of(model)
        if self.adapter_path is not None or not is_trained_first:
            check_kind(self._adapter(model))

    def foretold(self, model: Model | Planned) -> Planned:
        return Planned("hf", model.provenance, settings_of(model), weights_of(model))

    def _adapter(self, model: Model | Planned) -> Path:
        """The PEFT folder to merge. Raises ColdpressError unless there is exactly one."""
        found = adapters_of(model)
        if self.adapter_path is not None:
            found["adapter_path"] = Path(self.adapter_path)
        if len(found) > 1:
            raise ColdpressError(
                f"the model has {len(found)} adapters: {', '.join(found)}", hint="merge a base with one of them"
            )
        if not found:
            raise ColdpressError("the model has no adapter beside it", hint="name a PEFT folder: --adapter_path")
        return next(iter(found.values()))

    def run(self, model: Model, ctx: Context) -> Model:
        from coldpress.tune.merge import merge

        adapter, base = self._adapter(model), adapter_folder.base_of(model.path)
        merged = merge(base, adapter, ctx.scratch, ctx.progress, self.trust_remote_code)
        provenance = replace(model.provenance, precision=merged.precision, is_merged=True)
        if merged.errors:
            mean = sum(merged.errors.values()) / len(merged.errors)
            provenance = provenance.remarked(
                f"The base is quantized, so {len(merged.errors)} layers were rounded again with the adapter in them, on"
                f" the grid of the base: that changed them by {mean:.1%} on average."
            )
        return Model(ctx.scratch, "hf", "", provenance)
