"""Add an adapter to the weights of its base: a Hugging Face folder comes out, of the same format and types.

PEFT does the sums for every method that it can merge (LoRA, DoRA, LoHa, LoKr, ...). Layers that are quantized in the base are added to in
float32 and rounded again on their own grid, since a sum of codes and floats lies between the codes; what that changes is in the report.
Serving the adapter beside its base (``auto-opt --adapter_path``) changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coldpress.errors import ColdpressError
from coldpress.model import Model
from coldpress.networks import adapter_folder
from coldpress.parts import Context, Pass, option
from coldpress.target import Target


@dataclass(frozen=True)
class MergeAdapterWeights(Pass):
    """Add an adapter to the weights of its base: a Hugging Face folder comes out, of the same format and types."""

    accepts: ClassVar[tuple[str, ...]] = ("adapter",)
    produces: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "peft")
    version: ClassVar[int] = 1

    trust_remote_code: bool = option("run model code that comes with the model", False)

    def check(self, model: Model, target: Target) -> None:
        if adapter_folder.is_one(model.path):
            found = adapter_folder.read(model.path).adapters
            if len(found) > 1:
                raise ColdpressError(
                    f"{model.path} has {len(found)} adapters: {', '.join(found)}", hint="merge a base with one of them"
                )

    def run(self, model: Model, ctx: Context) -> Model:
        from coldpress.tune.merge import Merge

        self.check(model, ctx.target)
        found = adapter_folder.read(model.path)
        (adapter,) = found.adapters.values()
        merged = Merge(found.base, adapter, self.trust_remote_code).write(ctx.scratch, ctx.progress)
        remarks = list(model.notes.get("warnings", []))
        if merged.errors:
            mean = sum(merged.errors.values()) / len(merged.errors)
            remarks.append(
                f"The base is quantized, so {len(merged.errors)} layers were rounded again with the adapter in them, on the "
                f"grid of the base: that changed them by {mean:.1%} on average."
            )
        return Model(ctx.scratch, "hf", "", {**model.notes, "warnings": remarks})
