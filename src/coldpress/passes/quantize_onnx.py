"""Quantize the weights of an ONNX model: an ONNX model in, an ONNX model out.

MatMul and Gemm with a constant matrix become ``MatMulNBits``, lookups in a table ``GatherBlockQuantized``; everything
else stays as it is, opset and float type included. rtn, kquant and hqq look at the weights alone and take any model.
awq, gptq and best run the float model with ONNX Runtime on calibration data, one sample at a time, and fit each weight
to the inputs it gets: models of text on windows of a text, all others on data of the user's, such as arrays
(``--data_files inputs.npz``, named as the inputs, samples along the first axis). The Gram matrices of at most a
gigabyte are held at a time; a model with more is run several times.

AWQ's scales are put where a norm alone makes the input of the weights; elsewhere awq is its clipping. Small weights,
those in subgraphs, and those that other nodes read, too, stay float, and the report says so.
"""

from __future__ import annotations

import fnmatch
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.kernels import Encoding, fitting_block
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.models.provenance import CalibrationRecord, QuantizedLayer, Timing
from coldpress.parts import Closeness, Context, DataSource, Pass, option, refuse
from coldpress.rules.block_quantized_products import slow_encoding
from coldpress.target import Target

if TYPE_CHECKING:
    from coldpress.graphs.imported.fit import Calibration
    from coldpress.graphs.imported.inputs import Feed, Inputs
    from coldpress.graphs.imported.requantize import Graph
    from coldpress.graphs.imported.weights import Weight

ALGORITHMS = ("kquant", "rtn", "hqq", "gptq", "awq", "best")
PRECISIONS = ("int4", "int8", "int2")
_CALIBRATED = ("gptq", "awq", "best")
_EMBEDDING_BITS = 4
_SHOWN = 4
#: by bits; a block of normally distributed weights is rounded by 0.6%, 9% and 45%, and products cancel some of it
_CLOSENESS = {
    8: Closeness(0.1, "8 bits round weights by 0.6%, and activations by as much"),
    4: Closeness(0.5, "4 bits round weights by 9%, which adds up over layers"),
    2: Closeness(0.95, "2 bits round weights by 45%: only nonsense is ruled out"),
}


@dataclass(frozen=True)
class QuantizeOnnx(Pass):
    """Quantize the weights of an ONNX model: an ONNX model in, an ONNX model out."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    produces: ClassVar[str] = "onnx"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    version: ClassVar[int] = 5

    precision: str = option(f"bits of a weight: {', '.join(PRECISIONS)}", "int4")
    algorithm: str = option(
        "rtn, kquant and hqq need no data; best is AWQ scales, GPTQ and a polish together", "kquant", ALGORITHMS
    )
    block_size: int = option("weights that share a scale, along the inputs of a layer", 32, (16, 32, 64, 128, 256))
    symmetric: bool | None = option("grid without zero points; default: only for 8 bits, and on GPUs", None)
    accuracy_level: int | None = option(
        "what the CPU multiplies in: 0 float, 4 int8; default: 4 on CPUs", None, (0, 1, 2, 3, 4)
    )
    scale_dtype: str = option(
        "what scales of float32 weights are stored as, cast when the graph is loaded", "float16", ("float16", "float32")
    )
    lm_head: bool = option("quantize the layer that gives the output 'logits'", True)
    head_bits: int = option("least bits of that layer", 8, (4, 8))
    embeddings: bool = option("quantize tables that Gather looks up, to at least 4 bits", True)
    modules_to_not_convert: tuple[str, ...] = option("globs over names of nodes and weights that stay float", ())
    data: DataSource | None = option(
        "what to calibrate on: data of any kind; default: calibration_text, the text that coldpress ships", None
    )

    @property
    def closeness(self) -> Closeness:
        return _CLOSENESS[self._bits]

    def check(self, model: Model | Planned, target: Target) -> None:
        self._check_precision()
        for bits in {self._bits, self._head_bits, self._embedding_bits}:
            if bits is not None:
                self._check_kernel(bits, target)
        if self.data is not None and self.algorithm not in _CALIBRATED:
            raise ColdpressError(
                f"data has no effect with {self.algorithm}, which needs none",
                hint=f"use --algorithm {' or '.join(_CALIBRATED)}",
            )
        if self.data is not None:
            self.data.make().check(model)
        if self.algorithm in _CALIBRATED and isinstance(model, Model):
            from coldpress.graphs.imported.requantize import Graph
            from coldpress.models.model import find_graphs

            with tempfile.TemporaryDirectory(prefix="coldpress-data-") as scratch:
                for name, file in find_graphs(model.path).items():
                    graph = Graph.open(name, file)
                    if any(weight.inputs for weight in graph.found.weights):
                        self._check_feeds(graph, model, Context(Path(scratch), target))

    def _check_precision(self) -> None:
        if self.precision == "int3":
            raise ColdpressError(
                "no ONNX kernel reads 3 bits",
                hint="use --precision int4, or int2; 'coldpress quantize' writes 3 bits to a Hugging Face folder",
            )
        if self.precision not in PRECISIONS:
            raise ColdpressError(f"unknown precision '{self.precision}'", hint=did_you_mean(self.precision, PRECISIONS))

    def _check_kernel(self, bits: int, target: Target) -> None:
        try:
            refuse(slow_encoding(self._grid(bits, self.block_size, target), self._accuracy(target), target.short_name))
        except ColdpressError as error:
            if bits == self._bits:
                raise
            raise ColdpressError(
                f"the head or an embedding, with {bits} bits: {error.message}",
                hint=f"{error.hint}; --head_bits 4, or --no_lm_head, changes the head",
            ) from error

    def run(self, model: Model, ctx: Context) -> Model:
        import torch

        from coldpress.graphs.imported.requantize import How, write
        from coldpress.models.onnx_graphs import carry_over, external_files

        torch.set_num_threads(ctx.target.thread_count)
        started = time.perf_counter()
        ctx.progress("reading the graph", 0, 1)
        graphs = self._open(model, ctx.target)
        numbers = sum(graph.numbers for graph in graphs)
        used = {file for graph in graphs for file in external_files(graph.model)}
        data, calibrations = self._calibrations(graphs, model, ctx)
        opened = time.perf_counter()
        how = How(
            self._plain_algorithm,
            self._quantizer(),
            self._accuracy(ctx.target),
            self.scale_dtype,
            ctx.target.thread_count,
            ctx.progress,
        )
        layers: list[QuantizedLayer] = []
        for graph, calibration in zip(graphs, calibrations, strict=True):
            layers += write(graph, ctx.scratch, how, calibration)
        carry_over(model.path, used, ctx.scratch)
        fitted = tuple(layer for layer in layers if layer.output_error is not None)
        known, done = model.provenance, time.perf_counter()
        provenance = replace(
            known,
            source=replace(known.source, weights=numbers),
            precision=self.precision,
            layers=tuple(layers),
            calibration=data and replace(data, layers=fitted),
            timings=(Timing("read the graph", opened - started), Timing("quantize the weights", done - opened)),
        )
        return Model(ctx.scratch, "onnx", "", provenance.remarked(*_remarks(graphs), *self._unscaled(layers)))

    @property
    def _bits(self) -> int:
        return int(self.precision.removeprefix("int"))

    @property
    def _head_bits(self) -> int | None:
        return max(self._bits, self.head_bits) if self.lm_head else None

    @property
    def _embedding_bits(self) -> int | None:
        return max(self._bits, _EMBEDDING_BITS) if self.embeddings else None

    def _accuracy(self, target: Target) -> int:
        if self.accuracy_level is not None:
            return self.accuracy_level
        return 4 if target.short_name == "cpu" else 0

    def _grid(self, bits: int, block_size: int, target: Target) -> Encoding:
        is_symmetric = bits == 8 or target.short_name != "cpu"
        return Encoding(bits, block_size, is_symmetric if self.symmetric is None else self.symmetric)

    def _open(self, model: Model, target: Target) -> list[Graph]:
        """The graphs of the model, with the encodings of their weights; ColdpressError where there is nothing to do."""
        from coldpress.graphs.imported.requantize import Graph
        from coldpress.models.model import find_graphs

        graphs = [Graph.open(name, file) for name, file in find_graphs(model.path).items()]
        names = {name for graph in graphs for weight in graph.found.weights for name in weight.names}
        for pattern in self.modules_to_not_convert:
            if not fnmatch.filter(names, pattern):
                some = ", ".join(sorted(names)[:_SHOWN])
                raise ColdpressError(
                    f"'{pattern}' matches no node or weight that could be quantized",
                    hint=f"it is a glob over whole names, such as {some}" if some else None,
                )
        for graph in graphs:
            graph.choose(partial(self._encoding, target=target))
        if not any(graph.chosen for graph in graphs):
            why = "; ".join(_remarks(graphs)) or "it has no MatMul, Gemm or Gather with a constant matrix"
            raise ColdpressError(
                f"nothing to quantize in {model.path}: {why}", hint="quantize the model that it was exported from"
            )
        return graphs

    def _encoding(self, weight: Weight, target: Target) -> Encoding | str:
        """The encoding of a weight, or why it stays float."""
        kept = [pattern for pattern in self.modules_to_not_convert if fnmatch.filter(weight.names, pattern)]
        if kept:
            return "modules_to_not_convert"
        bits = {"linear": self._bits, "head": self._head_bits, "embedding": self._embedding_bits}[weight.role]
        if bits is None:
            return "lm_head is off" if weight.role == "head" else "embeddings are off"
        if weight.role == "head" and weight.lookups and not self.embeddings:
            return "embeddings are off, and the head is tied to one"
        encoding = self._grid(bits, fitting_block(weight.columns, self.block_size), target)
        try:
            refuse(slow_encoding(encoding, self._accuracy(target), target.short_name))
        except ColdpressError:
            return "no fast kernel has a block that divides their inputs"
        if weight.columns % encoding.block_size:
            return "no block divides their inputs"
        return encoding

    def _calibrations(
        self, graphs: list[Graph], model: Model, ctx: Context
    ) -> tuple[CalibrationRecord | None, list[Calibration | None]]:
        """What is known of the data, and how each graph is fed with it."""
        if self.algorithm not in _CALIBRATED:
            return None, [None] * len(graphs)
        from coldpress.data.batches.calibration import SHIPPED, windows
        from coldpress.graphs.imported.fit import Calibration
        from coldpress.graphs.imported.grams import Engine

        provider = ctx.target.provider if ctx.target.is_here else "CPUExecutionProvider"
        engine = Engine(ctx.target.thread_count, provider)
        inputs = [_inputs(graph, model) for graph in graphs]
        if all(own.takes_text for own in inputs):
            text = windows(self.data or SHIPPED, model, ctx)
            return CalibrationRecord(text.sources, len(text.ids), text.tokens, text.digest), [
                Calibration(self.algorithm, engine, partial(own.of_windows, text.ids), len(text.ids)) for own in inputs
            ]
        source = self._source(graphs[0], inputs[0])
        sizes = [(batch.origin, batch.size) for batch in source.batches(model, ctx)]
        samples, origin = sum(size for _, size in sizes), sizes[0][0] or f"data of the kind {source.type}"
        feeds = [partial(_feeds, own, source, model, ctx) for own in inputs]
        record = CalibrationRecord(f"{origin}, {samples} samples")
        return record, [Calibration(self.algorithm, engine, each, samples) for each in feeds]

    def _check_feeds(self, graph: Graph, model: Model, ctx: Context) -> None:
        """Refuse a graph that the calibration data does not fit."""
        inputs = _inputs(graph, model)
        if not inputs.takes_text:
            next(_feeds(inputs, self._source(graph, inputs), model, ctx))

    def _source(self, graph: Graph, inputs: Inputs) -> DataSource:
        """The data for a graph that takes more than a text."""
        if self.data is None or self.data.type == "calibration_text":
            raise ColdpressError(
                f"{self.algorithm} runs the model, and {graph.file.name} takes {', '.join(inputs.wanted)}, not a text"
                " alone",
                hint=(
                    "use --algorithm kquant, which needs no data, or --data_files inputs.npz with an array for each"
                    " input"
                ),
            )
        return self.data

    @property
    def _plain_algorithm(self) -> str:
        """What quantizes weights without data."""
        return "kquant" if self.algorithm in _CALIBRATED else self.algorithm

    def _quantizer(self) -> Callable[..., Any]:
        from coldpress.quant.hqq import hqq
        from coldpress.quant.kquant import kquant
        from coldpress.quant.rtn import rtn

        return {"rtn": rtn, "kquant": kquant, "hqq": hqq}[self._plain_algorithm]

    def _unscaled(self, layers: Iterable[QuantizedLayer]) -> list[str]:
        """Which layers got no AWQ scales, where they were asked for."""
        if self.algorithm not in ("awq", "best"):
            return []
        names = [layer.name for layer in layers if layer.tokens is not None and layer.alpha is None]
        return [f"without AWQ scales, as no norm alone makes their inputs: {_listed(names)}"] if names else []


def _inputs(graph: Graph, model: Model) -> Inputs:
    from coldpress.graphs.imported.inputs import Inputs

    return Inputs.of(graph.model.graph, model.path if model.path.is_dir() else model.path.parent)


def _feeds(inputs: Inputs, source: DataSource, model: Model, ctx: Context) -> Iterator[Feed]:
    """What a graph is fed with, one sample at a time."""
    return inputs.of_samples((batch.inputs for batch in source.batches(model, ctx)), f"data of the kind {source.type}")


def _remarks(graphs: Iterable[Graph]) -> list[str]:
    """The weights that stay float, a line for each reason."""
    reasons: dict[str, list[str]] = {}
    for graph in graphs:
        for reason, names in graph.found.skipped.items():
            reasons.setdefault(reason, []).extend(names)
    return [f"{reason}: {_listed(names)} (float)" for reason, names in reasons.items()]


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
