"""A causal language model in ONNX, opened by onnxruntime to score texts: the logits of all their tokens, and what
single layers give.

A pressed graph computes logits for the last position only, as generation needs no others. To score a text, the
node that picks that position is bypassed in memory; the folder stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.adapter_file import read_adapter
from coldpress.graphs.edits import forget_shapes, give_as_float
from coldpress.graphs.queries import maker, readers
from coldpress.graphs.session import runtime_errors, session_of
from coldpress.graphs.signature import empty_cache
from coldpress.models.onnx_folder import graph_file, read_genai_config
from coldpress.models.onnx_graphs import load_graph
from coldpress.target import physical_cores

#: Operators with a weight -> the input that holds it.
_LINEAR = {"MatMulNBits": 1, "MatMul": 1, "Gemm": 1, "DynamicQuantizeMatMul": 1}
_PASS_THROUGH = ("Transpose", "Concat", "Cast", "Identity", "Reshape", "DequantizeLinear", "QuantizeLinear")
#: the node that picks the positions which the head gives logits for
PICKED = "coldpress/last_position"
#: the head's logits, in a graph whose output ``logits`` has them in another shape
PICKED_LOGITS = "coldpress/picked_logits"
_SCORED = "coldpress/scored_logits"


class Decoder:
    """A causal language model folder that gives the logits of whole texts.

    ``folder`` holds the graph, its data file and, for key-value shapes that the graph leaves open, a
    genai_config.json. ``threads`` 0 means one for each core.
    """

    def __init__(self, folder: Path, threads: int = 0, provider: str = "CPUExecutionProvider"):
        self.folder = Path(folder)
        self._config = read_genai_config(self.folder)
        self._threads, self._provider = threads or physical_cores(), provider
        self._graph = scoring_graph(graph_file(self.folder))
        self._session = self._open(self._graph)

    def logits(self, window: np.ndarray, adapter: Path | None = None) -> np.ndarray:
        """For token ids [tokens], the logits [tokens, vocab] in float32, with an adapter file if one is given."""
        (scores,) = self._run(self._session, [_SCORED], window, adapter)
        return scores.reshape(-1, scores.shape[-1])

    def linears(self) -> dict[str, tuple[str, ...]]:
        """In the order of the graph: output of a linear layer -> the modules whose weights it applies.

        Several modules when the graph joins their weights. The layer that gives the logits is ``lm_head``.
        """
        return _linear_outputs(self._graph.graph)

    def linear_outputs(self, window: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The outputs [tokens, out] of the linear layers with these modules' weights, bias included.

        Layers that share one node (joined q, k, v) each get the output of that node.
        """
        asked = set(names)
        wanted = {module: tensor for tensor, modules in self.linears().items() for module in modules if module in asked}
        model = scoring_graph(graph_file(self.folder))
        made = {value.name: value for node in model.graph for value in node.outputs}
        seen = {tensor: f"coldpress/seen/{tensor}" for tensor in sorted(set(wanted.values()))}
        for tensor, name in seen.items():
            give_as_float(model.graph, made[tensor], name)
        values = dict(zip(seen, self._run(self._open(model), [*seen.values()], window), strict=True))
        return {module: values[tensor].reshape(-1, values[tensor].shape[-1]) for module, tensor in wanted.items()}

    def _open(self, graph: ir.Model) -> Any:
        try:
            return session_of(graph, self._threads, self._provider)
        except runtime_errors() as error:
            raise ColdpressError(
                f"{self._provider} cannot run {self.folder}: {error}", exit_code=WORK_FAILED
            ) from error

    def _run(
        self, session: Any, outputs: list[str], window: np.ndarray, adapter: Path | None = None
    ) -> list[np.ndarray]:
        feeds = {value.name: self._feed(value, len(window), window) for value in session.get_inputs()}
        if adapter is not None:
            feeds |= read_adapter(adapter)
        try:
            return [value.numpy() for value in session.run_with_ort_values(outputs, feeds)]
        except runtime_errors() as error:
            raise ColdpressError(
                f"{self._provider} cannot run {self.folder}: {error}", exit_code=WORK_FAILED
            ) from error

    def _feed(self, value: Any, count: int, window: np.ndarray) -> Any:
        from onnx import TensorProto
        from onnxruntime import OrtValue

        if value.name == "input_ids":
            array = np.asarray(window).reshape(1, count)
        elif value.name == "attention_mask":
            array = np.ones((1, count))
        elif value.name == "position_ids":
            array = np.arange(count).reshape(1, count)
        elif value.name.startswith("past"):
            name = value.type.removeprefix("tensor(").removesuffix(")")
            return empty_cache(value.name, TensorProto.DataType.Value(name.upper()), value.shape, self._config)
        else:
            raise ColdpressError(f"the graph in {self.folder} has an input this scorer does not know: '{value.name}'")
        return OrtValue.ortvalue_from_numpy(array.astype(np.int32 if "int32" in value.type else np.int64))


def scoring_graph(file: Path) -> ir.Model:
    """The graph, its weights where they are, changed to give float32 logits of every position as
    ``coldpress/scored_logits``."""
    model = load_graph(file)
    graph = model.graph
    for node in graph:
        if node.name == PICKED:
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
    logits = next((output for output in graph.outputs if output.name == "logits"), None)
    if logits is None:
        raise ColdpressError(f"{file} has no output named logits, so it is not a causal language model")
    graph.outputs.remove(logits)
    give_as_float(graph, logits, _SCORED)
    forget_shapes(graph)
    return model


def _linear_outputs(graph: ir.Graph) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for node in graph:
        if node.op_type not in _LINEAR:
            continue
        weight, output = node.inputs[_LINEAR[node.op_type]], node.outputs[0]
        modules = tuple(module for one in _origins(weight) for module in _modules_of(str(one.name)))
        adds = [one for one in readers(output) if one.op_type == "Add"]
        if adds and any(_origins(value) for value in adds[-1].inputs):
            output = adds[-1].outputs[0]
        if modules:
            found[str(output.name)] = ("lm_head",) if output.name in ("logits", PICKED_LOGITS) else modules
    return found


def _origins(value: ir.Value | None) -> list[ir.Value]:
    """The initializers that a value is only another shape, order or type of, each once; none for a computed value."""
    found, seen, waiting = list[ir.Value](), set[ir.Value](), [value]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        node = maker(one, *_PASS_THROUGH)
        if one.is_initializer():
            found.append(one)
        elif node is not None:
            waiting += reversed(node.inputs if node.op_type == "Concat" else node.inputs[:1])
    return found


def _modules_of(weight: str) -> list[str]:
    """``model.layers.0.mlp.up_proj.weight.scales`` -> ``[model.layers.0.mlp.up_proj]``.

    mobius names a weight that it joined from several ``q.weight__k.weight__v.weight__axis_0__concat``.
    """
    parts = [re.split(r"\.weight(?:$|[._])", part)[0] for part in weight.split("__") if ".weight" in part]
    return parts or [weight]
