"""Another opset for a graph that others wrote: onnxscript's converter goes to newer ones; where it cannot, and for
older ones, that of onnx."""

from __future__ import annotations

import logging

import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError, raised_as
from coldpress.models.onnx_graphs import is_beside, read


def convert(model: ir.Model, opset: int, name: str) -> None:
    """Rewrite a graph in place for ``opset``. ColdpressError, with ``name``, where an operator has no form there."""
    from onnxscript.version_converter import convert_version

    before = model.opset_imports.get("")
    _read_small(model)
    logger, reasons = logging.getLogger("onnxscript.version_converter"), _Reasons()
    logger.addHandler(reasons)
    spreads, logger.propagate = logger.propagate, False
    try:
        with raised_as(lambda error: _impossible(name, before, opset, str(error))):
            convert_version(model, opset, fallback=True)
    finally:
        logger.removeHandler(reasons)
        logger.propagate = spreads
    if model.opset_imports.get("") != opset:
        raise _impossible(name, before, opset, reasons.last or "an operator has no form there")


def _read_small(model: ir.Model) -> None:
    """Bring small tensors, and those of subgraphs, into memory: the converter of onnx keeps only large ones of the
    graph apart."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            is_kept = graph is model.graph and tensor is not None and tensor.nbytes > _SMALL_BYTES
            if tensor is not None and is_beside(tensor) and not is_kept:
                value.const_value = read(tensor)


#: more than the converter takes for small
_SMALL_BYTES = 1 << 16


def _impossible(name: str, before: int | None, opset: int, why: str) -> ColdpressError:
    return ColdpressError(
        f"{name} cannot be converted from opset {before} to {opset}: {why}",
        hint="choose a newer opset, or export the model with the one you want",
        exit_code=WORK_FAILED,
    )


class _Reasons(logging.Handler):
    """Keeps the last error that the converter only logs."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.last = str(record.exc_info[1]).rpartition("failed: ")[2]
