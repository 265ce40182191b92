"""Fix sizes that a graph leaves open: named dimensions, or whole shapes of inputs.

Compilers for NPUs need it, and ONNX Runtime plans memory better with it. The sizes of outputs follow. Tensors stay in
their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import SAME, Closeness, option
from coldpress.parts.graph_pass import GraphContext, GraphPass, Rewritten
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class DynamicToFixedShape(GraphPass):
    """Fix sizes that a graph leaves open: named dimensions, or whole shapes of inputs."""

    version: ClassVar[int] = 4
    needs: ClassVar[tuple[str, ...]] = ("onnx-ir", "onnx-shape-inference")

    dim_param: tuple[str, ...] = option("names of dimensions", ())
    dim_value: tuple[int, ...] = option("their sizes, in the same order", ())
    input_name: tuple[str, ...] = option("names of inputs", ())
    input_shape: tuple[str | tuple[int, ...], ...] = option("their shapes, in the same order, such as 1,3,224,224", ())

    @property
    def closeness(self) -> Closeness:
        return SAME

    def check(self, model: Model | Planned, target: Target) -> None:
        for names, values in (("dim_param", "dim_value"), ("input_name", "input_shape")):
            counts = len(getattr(self, names)), len(getattr(self, values))
            if counts[0] != counts[1]:
                raise ColdpressError(
                    f"{names} names {counts[0]}, {values} gives {counts[1]}; each needs one",
                    hint=f"give {values} once for each {names}, in the same order",
                )
        if not self._dims and not self._shapes:
            raise ColdpressError("no size is given to fix", hint="--dim_param batch --dim_value 1")
        for name, size in [
            *self._dims.items(),
            *((name, size) for name, shape in self._shapes.items() for size in shape),
        ]:
            if size < 1:
                raise ColdpressError(f"the size of '{name}' is {size}", hint="sizes are 1 or more")
        super().check(model, target)

    @property
    def _dims(self) -> dict[str, int]:
        return dict(zip(self.dim_param, self.dim_value, strict=False))

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: _sizes(shape) for name, shape in zip(self.input_name, self.input_shape, strict=False)}

    def check_graphs(self, graphs: Mapping[str, ir.Model], target: Target) -> None:
        inputs = {str(value.name): value for one in graphs.values() for value in one.graph.inputs}
        names = {str(size) for value in inputs.values() for size in value.shape or () if not isinstance(size, int)}
        for name in self._dims:
            if name not in names:
                raise ColdpressError(f"no input has a dimension '{name}'", hint=did_you_mean(name, names))
        for name, shape in self._shapes.items():
            if name not in inputs:
                raise ColdpressError(f"there is no input '{name}'", hint=did_you_mean(name, inputs))
            known = inputs[name].shape
            if known is None:
                continue
            clash = [size for size, own in zip(shape, known, strict=False) if isinstance(own, int) and own != size]
            if len(known) != len(shape) or clash:
                raise ColdpressError(f"input '{name}' has the shape {known}, which {list(shape)} does not fit")

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        import onnx_ir as ir

        from coldpress.graphs.shapes import infer_shapes

        for value in graph.graph.inputs:
            if value.name in self._shapes:
                value.shape = ir.Shape(self._shapes[value.name])
            elif value.shape is not None:
                sizes = [
                    size if isinstance(size, int) else self._dims.get(str(size.value), size) for size in value.shape
                ]
                value.shape = ir.Shape(sizes)
        infer_shapes(graph, "override")
        _repair_ranges(graph.graph)
        return Rewritten(graph)


def _sizes(shape: str | tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(shape, str):
        return shape
    try:
        return tuple(int(size) for size in shape.replace("x", ",").split(","))
    except ValueError:
        raise ColdpressError(f"input_shape: '{shape}' is no shape", hint="write 1,3,224,224") from None


def _repair_ranges(graph: ir.Graph) -> None:
    """Make the ends of every Range scalars, as ONNX wants them; with sizes left open nobody notices that they are
    not."""
    import onnx_ir as ir

    for node in [node for node in graph if node.op_type == "Range"]:
        for index, value in enumerate(node.inputs):
            if value is None or value.shape is None or len(value.shape) == 0:
                continue
            scalar = ir.node("Squeeze", [value], name=f"{node.name}/Squeeze_{index}")
            scalar.outputs[0].name = f"{node.name}.end_{index}"
            scalar.outputs[0].dtype, scalar.outputs[0].shape = value.dtype, ir.Shape([])
            graph.insert_before(node, scalar)
            node.replace_input_with(index, scalar.outputs[0])
