"""Types and shapes of the values of a graph that others wrote, contrib operators included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

import onnx_ir as ir


def infer_shapes(model: ir.Model, policy: str = "refine") -> None:
    """Note the types and shapes of all values, contrib operators included; "override" forgets what was noted before.

    Names of open axes may be any text. Inference reads them as expressions, so it gets others for those that are none.
    """
    from onnx_shape_inference import OpUsageError, ShapeInferenceError, infer_symbolic_shapes

    names = {name for value in _values(model) for name in _odd_names(value)}
    plain = {name: f"axis_called_{place}" for place, name in enumerate(sorted(names))}
    _rename_axes(model, plain)
    with suppress(
        OpUsageError, ShapeInferenceError
    ):  # what it takes for wrong, such as a Loop without condition, stays unknown
        infer_symbolic_shapes(model, policy=policy, warn_on_missing=False)
    _rename_axes(model, {new: old for old, new in plain.items()})


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.outputs)
        yield from (value for node in graph for value in node.outputs)


def _odd_names(value: ir.Value) -> list[str]:
    """The names of open axes that are no identifiers."""
    names = [axis.value for axis in value.shape or () if isinstance(axis, ir.SymbolicDim)]
    return [name for name in names if name is not None and not name.isidentifier()]


def _rename_axes(model: ir.Model, names: Mapping[str, str]) -> None:
    if not names:
        return
    for value in _values(model):
        if value.shape is not None and any(
            axis.value in names for axis in value.shape if isinstance(axis, ir.SymbolicDim)
        ):
            value.shape = ir.Shape(
                names.get(str(axis.value), axis) if isinstance(axis, ir.SymbolicDim) else axis for axis in value.shape
            )
