"""``H = X'X`` of inputs inside a graph, from running the graph as it is with ONNX Runtime.

The asked inputs become outputs, and what they do not need is cut away. One sample runs at a time, so memory holds the
activations of one sample and the matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from coldpress.errors import WORK_FAILED, ColdpressError, raised_as
from coldpress.graphs.edits import give_as_float
from coldpress.graphs.imported.inputs import Feed
from coldpress.graphs.session import session_of
from coldpress.models.onnx_graphs import load_graph
from coldpress.quant.grid import Floats

_SEEN = "coldpress/seen/"


@dataclass
class Gram:
    """``matrix [K, K]``, summed over ``tokens`` rows of inputs."""

    matrix: Floats
    tokens: int


@dataclass(frozen=True)
class Engine:
    """Where the float graph runs."""

    threads: int = 1
    provider: str = "CPUExecutionProvider"

    def grams(
        self, file: Path, asked: dict[str, int], feeds: Iterable[Feed], done: Callable[[], None] = lambda: None
    ) -> dict[str, Gram]:
        """The matrices of tensors: name -> Gram, for ``asked`` names with the length of their last axis.

        ``done`` is called after each sample. ColdpressError for a graph that does not run and for values that are not
        finite.
        """
        found = {name: Gram(np.zeros((columns, columns), np.float32), 0) for name, columns in asked.items()}
        session = self._open(file, list(asked))
        for feed in feeds:
            for name, values in zip(asked, _run(session, feed, file), strict=True):
                rows = values.reshape(-1, asked[name])
                found[name].matrix += rows.T @ rows
                found[name].tokens += len(rows)
            done()
        for name, gram in found.items():
            if not np.isfinite(gram.matrix).all():
                raise ColdpressError(
                    f"'{name}' in {file.name} is not finite for the calibration data",
                    hint="calibrate a float32 model",
                )
        return found

    def _open(self, file: Path, tensors: list[str]) -> Any:
        graph = _watching(file, tensors)
        with raised_as(partial(_cannot_run, file)):
            return session_of(graph, self.threads, self.provider)


def _run(session: Any, feed: Feed, file: Path) -> list[np.ndarray]:
    from onnxruntime import OrtValue

    values = {
        name: OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in feed.items()
    }
    with raised_as(partial(_cannot_run, file)):
        return [output.numpy() for output in session.run_with_ort_values(None, values)]


def _cannot_run(file: Path, error: BaseException) -> ColdpressError:
    return ColdpressError(
        f"ONNX Runtime cannot run {file} on the calibration data: {error}",
        hint="check the data, or use --algorithm kquant, which runs nothing",
        exit_code=WORK_FAILED,
    )


def _watching(file: Path, tensors: list[str]) -> ir.Model:
    """The graph, its large tensors left in their files, with ``tensors`` as float32 for its only outputs."""
    model = load_graph(file)
    values = {value.name: value for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None}
    model.graph.outputs.clear()
    for tensor in tensors:
        give_as_float(model.graph, values[tensor], f"{_SEEN}{tensor}")
    RemoveUnusedNodesPass()(model)
    return model
