"""Weights in int8 and activations in 8 or 16 bits, in ranges that a few batches show.

ONNX Runtime's static quantization. It pays for convolutional networks, whose layers then hand int8 to each other, and
for transformers where even the search for the range of each activation costs too much. Batches come from ``data``;
without it from the text that coldpress ships, for models of text with their tokenizer, and else from random numbers,
which the report says. One batch's activations are in memory at a time, and the weights as a whole.

``qdq`` puts QuantizeLinear and DequantizeLinear around operators, which every execution provider reads; ``qoperator``
writes the integer operators of the CPU. A graph that has something quantized already is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from coldpress.data.batches.feeds import feeds_for
from coldpress.errors import ColdpressError
from coldpress.graphs.imported.int8 import (
    Calibration,
    Choice,
    check_overrides,
    has_operator,
    overrides_for_runtime,
    quantize_static,
    said,
)
from coldpress.graphs.imported.tools import working_copy
from coldpress.models.model import Model, find_graphs
from coldpress.models.onnx_graphs import rewrite_graphs
from coldpress.models.planned import Planned
from coldpress.models.provenance import CalibrationRecord
from coldpress.parts import Closeness, Context, DataSource, Pass, option
from coldpress.rules.int8_products import slow_signs
from coldpress.target import Target

#: the oldest one in which weights may have a scale for each output
_OPSET = 13
_PRODUCTS = ("MatMul", "Gemm", "Gather")
#: around convolutions all that can stay in int8 between them
_CONVOLUTIONAL = (
    *("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool"),
    *("AveragePool", "GlobalAveragePool", "Concat", "Split", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze"),
    *("Unsqueeze", "Resize"),
)
_METHODS = ("minmax", "entropy", "percentile")


@dataclass(frozen=True)
class OnnxStaticQuantization(Pass):
    """Weights and activations in int8, in ranges that a few batches show."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    fits_machine: ClassVar[bool] = True
    version: ClassVar[int] = 5
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    data: DataSource | None = option("where the calibration batches come from", None)
    num_samples: int = option("calibration batches at most", 64)
    max_seq_len: int | None = option("tokens of a batch of the shipped text; default: 128", None)
    calibrate_method: str = option(
        "range of an activation: its extremes, the least loss of information, or all but a few outliers",
        "minmax",
        _METHODS,
    )
    percentile: float = option("share of values inside the range, in percent, with the method percentile", 99.999)
    moving_average: float | None = option("weight of a new batch in the range, with the method minmax", None)
    quant_format: str = option("how it is written", "qdq", ("qdq", "qoperator"))
    activation_type: str = option(
        "type of activations; those of 16 bits are for NPUs", "uint8", ("uint8", "int8", "uint16", "int16")
    )
    precision: str = option("type of weights; signed ones are the fast ones", "int8", ("int8", "uint8"))
    activation_symmetric: bool = option("ranges of activations around zero", False)
    weight_symmetric: bool = option("ranges of weights around zero", True)
    per_channel: bool = option("a scale for each output of a layer instead of one for all", True)
    reduce_range: bool | None = option(
        "7 bits for weights instead of 8, for CPUs without VNNI, whose sums of products overflow; default: as this"
        " machine's CPU does",
        None,
    )
    tensor_quant_overrides: dict[str, tuple[dict[str, Any], ...]] = option(
        "tensor -> how it is quantized otherwise: quant_type, symmetric, reduce_range, rmin and rmax, axis", dict
    )
    op_types_to_quantize: tuple[str, ...] = option(
        "operators; default: around convolutions all that can stay int8, else products with weights", ()
    )
    op_types_to_exclude: tuple[str, ...] = option("operators that stay float", ())
    nodes_to_quantize: tuple[str, ...] = option("globs over names of nodes; default: all of these operators", ())
    nodes_to_exclude: tuple[str, ...] = option("globs over names of nodes that stay float", ())

    @property
    def closeness(self) -> Closeness:
        if self.activation_type.endswith("16"):
            return Closeness(0.2, "weights of 8 bits round each layer by 1%, and ranges cut what was not seen")
        return Closeness(
            0.4, "8 bits in ranges that were seen: each layer rounds by 1% to 2%, and cuts what was not seen"
        )

    def check(self, model: Model | Planned, target: Target) -> None:
        if self.calibrate_method != "percentile" and self.percentile != OnnxStaticQuantization.percentile:
            raise ColdpressError("percentile has no effect without calibrate_method percentile", hint="leave it out")
        if self.calibrate_method != "minmax" and self.moving_average is not None:
            raise ColdpressError("moving_average has no effect without calibrate_method minmax", hint="leave it out")
        if not 50 < self.percentile <= 100:
            raise ColdpressError(f"percentile: {self.percentile:g} is not between 50 and 100", hint="such as 99.99")
        if self.moving_average is not None and not 0 < self.moving_average <= 1:
            raise ColdpressError(f"moving_average: {self.moving_average:g} is not between 0 and 1", hint="such as 0.01")
        if self.num_samples < 1:
            raise ColdpressError(f"num_samples: {self.num_samples} batches show nothing", hint="at least 1")
        if self.quant_format == "qoperator" and self.activation_type == "int8" and self.precision == "uint8":
            raise ColdpressError("no integer operator takes signed activations and unsigned weights", hint="use qdq")
        if self.quant_format == "qoperator" and self.activation_type.endswith("16"):
            raise ColdpressError("no integer operator takes activations of 16 bits", hint="use qdq")
        check_overrides(self.tensor_quant_overrides)
        if isinstance(model, Model):
            for file in find_graphs(model.path).values():
                self._choice(file).check(file)

    def run(self, model: Model, ctx: Context) -> Model:
        remarks: list[str] = []
        texts: list[str] = []

        def change(file: Path, target: Path) -> None:
            feeds = feeds_for(model, file, self.data, ctx, samples=self.num_samples, length=self.max_seq_len)
            done = iter(range(1, self.num_samples + 1))
            calibration = Calibration(
                self.calibrate_method,
                feeds.each(),
                self.percentile,
                self.moving_average,
                ctx.target.provider if ctx.target.is_here else "CPUExecutionProvider",
                ctx.target.thread_count,
                lambda: ctx.progress("calibrating", next(done), self.num_samples),
            )
            asked = self._choice(file)
            choice = asked.for_target(ctx.target)
            with working_copy(file, ctx.scratch, least_opset=_OPSET) as copy:
                options = self._options
                as_operators = self.quant_format == "qoperator"
                remarks.append(said(quantize_static(copy, target, choice, calibration, as_operators, options), copy))
            texts.append(feeds.text)
            slow = slow_signs(self.activation_type, self.precision, ctx.target)
            remarks.extend((*(finding.problem for finding in slow), *asked.remarks(choice)))
            if feeds.are_random:
                remarks.append("calibrated on random numbers, as no data was given: the ranges may be wrong")

        rewrite_graphs(model.path, ctx.scratch, change)
        calibration = CalibrationRecord("; ".join(dict.fromkeys(texts)))
        provenance = replace(model.provenance, precision="int8", layers=(), calibration=calibration)
        return Model(ctx.scratch, "onnx", "", provenance.remarked(*remarks))

    def _choice(self, file: Path) -> Choice:
        usual = _CONVOLUTIONAL if has_operator(file, "Conv") else _PRODUCTS
        kinds = self.op_types_to_quantize or usual
        return Choice(
            tuple(kind for kind in kinds if kind not in self.op_types_to_exclude),
            self.nodes_to_quantize,
            self.nodes_to_exclude,
            weight_type=self.precision,
            activation_type=self.activation_type,
            per_channel=self.per_channel,
            reduce_range=self.reduce_range,
        )

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "ActivationSymmetric": self.activation_symmetric or self.activation_type in ("int8", "int16"),
            "TensorQuantOverrides": overrides_for_runtime(self.tensor_quant_overrides),
            "WeightSymmetric": self.weight_symmetric,
            "MatMulConstBOnly": True,
        }
