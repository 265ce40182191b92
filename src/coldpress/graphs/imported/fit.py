"""Fitting weights to the inputs they get: the graph runs in float, then each weight is quantized alone.

The Gram matrices of the inputs are in memory up to MOST_GRAM_BYTES at a time. For a model with more the graph runs
again for each further group of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from coldpress.graphs.imported.folds import Fold
from coldpress.graphs.imported.grams import Engine, Gram
from coldpress.graphs.imported.inputs import Feed
from coldpress.graphs.imported.weights import Weight, by_size
from coldpress.graphs.layout import Quantized
from coldpress.graphs.stream import _write_codes as write_codes
from coldpress.models.provenance import QuantizedLayer
from coldpress.quant.awq import awq
from coldpress.quant.calibrated import calibrate
from coldpress.quant.gptq import shrink, to_numpy, to_torch
from coldpress.quant.grid import Floats, squared_error

MOST_GRAM_BYTES = 1 << 30
#: weights that are worked on at once: 64 MB as float32, and a few times that beside
_CHUNK_WEIGHTS = 1 << 24

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Calibration:
    """How weights are fitted: the algorithm, and ``samples`` inputs, which ``feeds()`` gives each time anew."""

    algorithm: str
    engine: Engine
    feeds: Callable[[], Iterable[Feed]]
    samples: int

    @property
    def scales_inputs(self) -> bool:
        return self.algorithm in ("awq", "best")


@dataclass
class Fitter:
    """Fits the weights of one graph and writes their codes to its mapped data file.

    ``folds`` are scaled in ``graph``, which is to be saved afterwards; ``file`` is the graph as it was, which runs.
    """

    file: Path
    graph: ir.Graph
    entries: dict[Weight, Quantized]
    folds: list[Fold]
    calibration: Calibration
    progress: Progress
    _scales: dict[Weight, Floats] = field(default_factory=dict)
    _alphas: dict[Weight, float] = field(default_factory=dict)

    def run(self, data: np.ndarray) -> dict[Weight, QuantizedLayer]:
        """Write the codes of all weights; returns their errors, and what the algorithm says of them."""
        done: dict[Weight, QuantizedLayer] = {}
        for group in by_size(list(self.entries), MOST_GRAM_BYTES):
            grams = self._grams(group)
            self._fold(group, grams)
            for weight in group:
                done[weight] = self._fit(weight, _sum([grams[name] for name in weight.inputs]), data)
                self.progress("quantizing", len(done), len(self.entries))
        return done

    def _grams(self, group: list[Weight]) -> dict[str, Gram]:
        asked = {name: weight.columns for weight in group for name in weight.inputs}
        count = iter(range(1, self.calibration.samples + 1))
        return self.calibration.engine.grams(
            self.file,
            asked,
            self.calibration.feeds(),
            lambda: self.progress("calibrating", next(count), self.calibration.samples),
        )

    def _fold(self, group: list[Weight], grams: dict[str, Gram]) -> None:
        """Search the AWQ scales of the folds in this group; divide norms and matrices by them."""
        for fold in [fold for fold in self.folds if all(weight in group for weight in fold.weights)]:
            self.folds.remove(fold)
            gram, entries = grams[fold.weights[0].inputs[0]], [self.entries[weight] for weight in fold.weights]
            power = to_numpy(shrink(to_torch(gram.matrix), gram.tokens))
            found = awq([_sample(entry) for entry in entries], power, entries[0].grid)
            scales = fold.divide(self.graph, found.scales)
            gram.matrix /= scales
            gram.matrix /= scales[:, None]
            for weight in fold.weights:
                self._scales[weight], self._alphas[weight] = scales, found.alpha

    def _fit(self, weight: Weight, gram: Gram, data: np.ndarray) -> QuantizedLayer:
        """Quantize one weight in chunks of rows and write it; the errors of the whole."""
        entry = self.entries[weight]
        sums = np.zeros(5)
        for row, values in _chunks(entry, self._scales.get(weight)):
            made = calibrate(values, gram.matrix, entry.grid, self.calibration.algorithm, tokens=gram.tokens)
            write_codes(data, entry, row, made.codes)
            size = float(np.square(values, dtype=np.float64).sum())
            sums += (squared_error(values, made.codes), size, *made.squares.sum(axis=1))
        missed, size, output, rtn_output, power = sums
        return QuantizedLayer(
            weight.layer,
            weight.role,
            **asdict(entry.encoding),
            algorithm=self.calibration.algorithm,
            relative_error=math.sqrt(missed / size) if size else 0.0,
            bytes=entry.bytes,
            output_error=math.sqrt(output / power) if power > 0 else 0.0,
            rtn_output_error=math.sqrt(rtn_output / power) if power > 0 else 0.0,
            tokens=gram.tokens,
            damp=made.damp,
            fallback=made.fallback,
            alpha=self._alphas.get(weight),
        )


def _sum(grams: list[Gram]) -> Gram:
    """The matrix of a weight that is multiplied with several tensors."""
    first, *others = grams
    if not others:
        return first
    return Gram(sum((gram.matrix for gram in others), first.matrix), sum(gram.tokens for gram in grams))


def _chunks(entry: Quantized, scales: Floats | None) -> Iterator[tuple[int, Floats]]:
    """The weight in chunks of rows, as float32, its columns times ``scales``, with the row that each begins at."""
    [span], step = entry.sources, max(1, _CHUNK_WEIGHTS // entry.columns)
    for row in range(0, entry.rows, step):
        values = np.ascontiguousarray(span.rows(row, min(row + step, entry.rows)))
        yield row, values if scales is None else values * scales


def _sample(entry: Quantized) -> Floats:
    """Rows of the weight, evenly drawn, as many as a chunk holds: enough to tell which scales are good."""
    [span], step = entry.sources, -(-entry.rows * entry.columns // _CHUNK_WEIGHTS)
    rows = [span.rows(row, row + 1) for row in range(0, entry.rows, step)] if step > 1 else [span.rows(0, entry.rows)]
    return np.ascontiguousarray(np.concatenate(rows))
