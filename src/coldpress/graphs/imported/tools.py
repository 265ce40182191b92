"""Room for the tools of others: a copy of a graph to work on, as they write beside what they read, and silence."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError, raised_as
from coldpress.graphs.imported.opset import convert
from coldpress.graphs.shapes import infer_shapes
from coldpress.models.onnx_graphs import load_graph


@contextmanager
def working_copy(file: Path, folder: Path, least_opset: int = 0) -> Iterator[Path]:
    """A copy of a graph for tools that write beside it: every node has a name, every value a type, large tensors lie
    beside it.

    Weights are initializers, for which the quantizers look alone: exporters such as Paddle's write them as nodes.
    ``least_opset``: an older graph is rewritten for it first. ColdpressError where that cannot be.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    place = folder / ".work"
    place.mkdir()
    try:
        model = load_graph(file)
        if model.opset_imports.get("", least_opset) < least_opset:
            convert(model, least_opset, file.name)
        LiftConstantsToInitializersPass()(model)
        for index, node in enumerate(model.graph.all_nodes()):
            node.name = node.name or f"{node.op_type}_{index}"
            while node.inputs and node.inputs[-1] is None:  # left out, which the quantizers take for a tensor
                node.resize_inputs(len(node.inputs) - 1)
            if node.op_type == "Gemm":
                _unshare(node)
        infer_shapes(model)
        ir.save(model, place / "model.onnx", external_data="model.onnx.data")
        _forget_weights(place / "model.onnx")
        yield place / "model.onnx"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _forget_weights(file: Path) -> None:
    """Leave the shapes of weights to the weights: a tool that turns one over does not turn what is noted of it."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    onnx.save(model, str(file))


def _unshare(node: ir.Node) -> None:
    """Give a Gemm a weight of its own: the quantizer turns it over without asking who else reads it."""
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or len(weight.uses()) < 2 or node.graph is None:
        return
    own = ir.Value(
        name=f"{weight.name}.of.{node.name}", shape=weight.shape, type=weight.type, const_value=weight.const_value
    )
    node.graph.initializers[str(own.name)] = own
    node.replace_input_with(1, own)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings about things that are taken care of, and without lines on standard output, which is the
    user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextmanager
def blaming(tool: str, graph: str) -> Iterator[None]:
    """Name the tool of others that fails on a graph, whatever it raises."""

    def told(error: BaseException) -> ColdpressError:
        return ColdpressError(
            f"{tool} cannot handle {graph}: {type(error).__name__}: {error}",
            hint="export the model again, for a newer opset if it has an old one, or leave this pass out",
            exit_code=WORK_FAILED,
        )

    with raised_as(told):
        yield
