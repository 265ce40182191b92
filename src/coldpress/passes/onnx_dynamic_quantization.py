"""Weights in int8, activations rounded while the model runs: no data needed.

ONNX Runtime's dynamic quantization. It pays for matrix products, so for transformers and recurrent networks: on CPUs
with AMX or VNNI they become several times faster, with signed weights only (unsigned ones miss the fast products).
Convolutions gain nothing from it and stay float unless they are named; quantize those statically.

A graph that has something quantized already is refused. The weights are in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from coldpress.graphs.imported.int8 import Choice, quantize_dynamic, said
from coldpress.graphs.imported.tools import working_copy
from coldpress.models.model import Model, find_graphs
from coldpress.models.onnx_graphs import rewrite_graphs
from coldpress.models.planned import Planned
from coldpress.parts import Closeness, Context, Pass, option
from coldpress.target import Target

#: the oldest one that has DynamicQuantizeLinear
_OPSET = 11
_OPERATORS = ("MatMul", "Gemm", "Gather", "Attention", "EmbedLayerNormalization", "LSTM")


@dataclass(frozen=True)
class OnnxDynamicQuantization(Pass):
    """Weights in int8, activations rounded while the model runs: no data needed."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    fits_machine: ClassVar[bool] = True
    version: ClassVar[int] = 5
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    precision: str = option("type of weights; signed ones are the fast ones", "int8", ("int8", "uint8"))
    per_channel: bool = option("a scale for each output of a layer instead of one for all", True)
    reduce_range: bool | None = option(
        "7 bits for weights instead of 8, for CPUs without VNNI, whose sums of products overflow; default: as this"
        " machine's CPU does",
        None,
    )
    op_types_to_quantize: tuple[str, ...] = option("operators whose weights are quantized", _OPERATORS)
    op_types_to_exclude: tuple[str, ...] = option("operators that stay float", ())
    nodes_to_quantize: tuple[str, ...] = option("globs over names of nodes; default: all of these operators", ())
    nodes_to_exclude: tuple[str, ...] = option("globs over names of nodes that stay float", ())

    @property
    def closeness(self) -> Closeness:
        return Closeness(0.25, "8 bits round each product by about 1%, which adds up over layers")

    def check(self, model: Model | Planned, target: Target) -> None:
        if isinstance(model, Model):
            for file in find_graphs(model.path).values():
                self._choice.check(file)

    def run(self, model: Model, ctx: Context) -> Model:
        choice = self._choice.for_target(ctx.target)
        remarks: list[str] = []

        def change(file: Path, target: Path) -> None:
            ctx.progress(f"quantizing {file.name}", 0, 1)
            with working_copy(file, ctx.scratch, least_opset=_OPSET) as copy:
                remarks.append(said(quantize_dynamic(copy, target, choice), copy))

        rewrite_graphs(model.path, ctx.scratch, change)
        remarks += self._choice.remarks(choice)
        if self.precision == "uint8":
            remarks.append("unsigned weights miss the fast int8 products of CPUs")
        provenance = replace(model.provenance, precision="int8", layers=()).remarked(*remarks)
        return Model(ctx.scratch, "onnx", "", provenance)

    @property
    def _choice(self) -> Choice:
        return Choice(
            tuple(kind for kind in self.op_types_to_quantize if kind not in self.op_types_to_exclude),
            self.nodes_to_quantize,
            self.nodes_to_exclude,
            weight_type=self.precision,
            per_channel=self.per_channel,
            reduce_range=self.reduce_range,
        )
