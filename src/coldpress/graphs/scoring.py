"""A causal language model in ONNX, opened by onnxruntime to score texts: the logits of all their tokens, and what
single layers give.

A pressed graph computes logits for the last position only, as generation needs no others. To score a text, the
node that picks that position is bypassed in memory; the folder stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.adapter_file import read_adapter
from coldpress.graphs.session import options_for_work, runtime_errors
from coldpress.graphs.signature import empty_cache
from coldpress.models.onnx_folder import graph_file, read_genai_config
from coldpress.target import physical_cores

if TYPE_CHECKING:
    import onnx

#: The node between the last norm and the head that keeps one position; its first input is the whole hidden state.

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
        import onnx

        asked = set(names)
        wanted = {module: tensor for tensor, modules in self.linears().items() for module in modules if module in asked}
        model = onnx.ModelProto()
        model.CopyFrom(self._graph)
        tensors = sorted(set(wanted.values()))
        seen = [_output_as_float(model.graph, tensor, f"coldpress/seen/{tensor}") for tensor in tensors]
        values = dict(zip(tensors, self._run(self._open(model), seen, window), strict=True))
        return {module: values[tensor].reshape(-1, values[tensor].shape[-1]) for module, tensor in wanted.items()}

    def _open(self, graph: onnx.ModelProto) -> Any:
        import onnxruntime

        options = options_for_work(self._threads)
        folder = str(graph_file(self.folder).parent.resolve())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=[self._provider])
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


def scoring_graph(file: Path) -> onnx.ModelProto:
    """The graph, without weights, changed to give float32 logits of every position as ``coldpress/scored_logits``."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    graph = model.graph
    for node in graph.node:
        if node.name == PICKED:
            _reroute(graph, node.output[0], node.input[0])
    del graph.value_info[:]
    logits = next((output for output in graph.output if output.name == "logits"), None)
    if logits is None:
        raise ColdpressError(f"{file} has no output named logits, so it is not a causal language model")
    graph.output.remove(logits)
    _output_as_float(graph, logits.name, _SCORED)
    return model


def _output_as_float(graph: onnx.GraphProto, tensor: str, name: str) -> str:
    """Add a float32 output with the values of any float tensor."""
    import onnx

    graph.node.append(onnx.helper.make_node("Cast", [tensor], [name], to=onnx.TensorProto.FLOAT))
    graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return name


def _reroute(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _linear_outputs(graph: onnx.GraphProto) -> dict[str, tuple[str, ...]]:
    made = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    adds = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.node:
        if node.op_type not in _LINEAR:
            continue
        modules = tuple(
            module
            for name in _origins(node.input[_LINEAR[node.op_type]], made, weights)
            for module in _modules_of(name)
        )
        tensor, add = node.output[0], adds.get(node.output[0])
        if add is not None and any(_origins(name, made, weights) for name in add.input):
            tensor = add.output[0]
        if modules:
            found[tensor] = ("lm_head",) if tensor in ("logits", PICKED_LOGITS) else modules
    return found


def _origins(name: str, made: Mapping[str, onnx.NodeProto], weights: set[str]) -> list[str]:
    """The initializers that a tensor is only another shape, order or type of, each once; none for a computed tensor."""
    found, seen, waiting = list[str](), set[str](), [name]
    while waiting:
        if (one := waiting.pop()) in seen:
            continue
        seen.add(one)
        node = made.get(one)
        if one in weights:
            found.append(one)
        elif node is not None and node.op_type in _PASS_THROUGH:
            waiting += reversed(node.input if node.op_type == "Concat" else node.input[:1])
    return found


def _modules_of(weight: str) -> list[str]:
    """``model.layers.0.mlp.up_proj.weight.scales`` -> ``[model.layers.0.mlp.up_proj]``.

    mobius names a weight that it joined from several ``q.weight__k.weight__v.weight__axis_0__concat``.
    """
    parts = [re.split(r"\.weight(?:$|[._])", part)[0] for part in weight.split("__") if ".weight" in part]
    return parts or [weight]
