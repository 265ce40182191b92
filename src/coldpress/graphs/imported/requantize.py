"""From a graph that others wrote to the same graph with quantized weights.

Weights are read from their files as they are needed, and codes go straight to the data file; neither model is
ever in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from coldpress.graphs.block_quantized import Writer
from coldpress.graphs.imported.fit import Calibration, Fitter, Progress
from coldpress.graphs.imported.folds import find_folds
from coldpress.graphs.imported.rewrite import place_rest, replace_weight
from coldpress.graphs.imported.spans import FLOATS, Spans, copy_bytes
from coldpress.graphs.imported.weights import Found, Weight, find_weights
from coldpress.graphs.kernels import Encoding
from coldpress.graphs.layout import Layout, Quantized
from coldpress.graphs.stream import Quantizer, fill
from coldpress.models.checkpoint import Span
from coldpress.models.onnx_graphs import load_graph
from coldpress.models.provenance import QuantizedLayer

#: the encoding of a weight, or why it stays float
Choose = Callable[[Weight], "Encoding | str"]


@dataclass
class Graph:
    """A graph on its way: the name it will have, its weights, and the encodings that were chosen for them."""

    name: str
    file: Path
    model: ir.Model
    found: Found
    chosen: dict[Weight, Encoding] = field(default_factory=dict)

    @classmethod
    def open(cls, name: str, file: Path) -> Graph:
        model = load_graph(file)
        return cls(name, file, model, find_weights(model))

    @property
    def numbers(self) -> int:
        """How many numbers the float tensors hold."""
        values = (value.const_value for graph in self.model.graphs() for value in graph.initializers.values())
        return sum(tensor.size for tensor in values if tensor is not None and tensor.dtype in FLOATS)

    def choose(self, encoding_of: Choose) -> None:
        """Give each weight its encoding; those that get a reason instead stay float."""
        for weight in list(self.found.weights):
            encoding = encoding_of(weight)
            if isinstance(encoding, str):
                self.found.skip(encoding, [weight])
            else:
                self.chosen[weight] = encoding


@dataclass(frozen=True)
class How:
    """How weights are quantized: ``quantizer``, which reports call ``algorithm``, does every weight, or those that
    ``calibration`` cannot.

    ``accuracy_level`` is what MatMulNBits gets; ``scale_dtype`` what scales of float32 weights are stored as;
    ``progress(what, done, total)`` is called as often as there is something new.
    """

    algorithm: str
    quantizer: Quantizer
    accuracy_level: int = 0
    scale_dtype: str = "float16"
    threads: int = 1
    progress: Progress = lambda what, done, total: None


def write(graph: Graph, folder: Path, how: How, calibration: Calibration | None = None) -> list[QuantizedLayer]:
    """Write the quantized graph and its data file below ``folder``; returns what rounding did to each layer.

    With ``calibration`` weights are fitted to their inputs; tables that nothing is multiplied with have none.
    """
    target = folder / graph.name
    target.parent.mkdir(parents=True, exist_ok=True)
    layout, spans = Layout(graph.name), Spans(folder / ".inline")
    folds = find_folds(list(graph.chosen)) if calibration and calibration.scales_inputs else []
    writer = Writer(graph.model, layout, how.accuracy_level)
    entries = {}
    for weight, encoding in graph.chosen.items():
        is_full = weight.tensor.dtype == ir.DataType.FLOAT
        dtype = how.scale_dtype if is_full else weight.tensor.dtype.name.lower()
        entries[weight] = layout.add_quantized(weight.name, weight.role, [_source(weight, spans)], encoding, dtype)
    for weight, entry in entries.items():
        replace_weight(writer, weight, entry)
    copies = place_rest(graph.model, layout, spans)
    done: dict[Weight, QuantizedLayer] = {}
    if layout.size_bytes:
        fitted = {weight: entry for weight, entry in entries.items() if calibration and weight.inputs}
        plain = {weight: entry for weight, entry in entries.items() if weight not in fitted}
        losses = fill(
            replace(layout, quantized=list(plain.values())),
            folder,
            how.quantizer,
            threads=how.threads,
            progress=lambda done, total: how.progress("quantizing", done, total),
        )
        done = {
            weight: _plainly(weight, entry, how.algorithm, loss.relative_error)
            for (weight, entry), loss in zip(plain.items(), losses, strict=True)
        }
        data = np.memmap(folder / layout.data, mode="r+", dtype=np.uint8)
        if calibration:
            done |= Fitter(graph.file, graph.model.graph, fitted, folds, calibration, how.progress).run(data)
        for span, place in copies:
            copy_bytes(span, place, data)
        data.flush()
    (folder / ".inline").unlink(missing_ok=True)
    ir.save(graph.model, target)
    return [done[weight] for weight in entries]


def _plainly(weight: Weight, entry: Quantized, algorithm: str, error: float) -> QuantizedLayer:
    """A weight that was quantized without data."""
    grid = asdict(entry.encoding)
    return QuantizedLayer(
        weight.layer, weight.role, **grid, algorithm=algorithm, relative_error=error, bytes=entry.bytes
    )


def _source(weight: Weight, spans: Spans) -> Span:
    """The weight as ``[rows, columns]``, however it is stored."""
    span = spans.of(weight.name, weight.tensor)
    return replace(span, shape=span.shape[::-1], strides=span.strides[::-1]) if weight.is_turned else span
