"""Another opset for a graph that others wrote: onnxscript's converter goes to newer ones; where it cannot, and for older ones, that of onnx."""

from __future__ import annotations

import logging

import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError


def convert(model: ir.Model, opset: int, name: str) -> None:
    """Rewrite a graph in place for ``opset``. ColdpressError, with ``name``, where an operator has no form there."""
    from onnxscript.version_converter import convert_version

    before = model.opset_imports.get("")
    logger, reasons = logging.getLogger("onnxscript.version_converter"), _Reasons()
    logger.addHandler(reasons)
    spreads, logger.propagate = logger.propagate, False
    try:
        convert_version(model, opset, fallback=True)
    except Exception as error:  # the converters' errors have no common base
        raise _impossible(name, before, opset, str(error)) from error
    finally:
        logger.removeHandler(reasons)
        logger.propagate = spreads
    if model.opset_imports.get("") != opset:
        raise _impossible(name, before, opset, reasons.last or "an operator has no form there")


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
