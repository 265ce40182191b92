"""Change the type of a graph's inputs and outputs, with a Cast behind or in front of each.

The usual case: a float16 graph whose ``logits`` a program expects as float32. Inside nothing changes.
"""

from __future__ import annotations

import fnmatch
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

_TYPES = ("float32", "float16", "bfloat16", "double", "int64", "int32", "int8", "uint8", "bool")


@dataclass(frozen=True)
class OnnxIoDatatypeConverter(GraphPass):
    """Change the type of a graph's inputs and outputs, with a Cast behind or in front of each."""

    version: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("onnx-ir",)

    name_pattern: str = option("glob over names of inputs and outputs", "logits")
    source_dtype: str = option("those that have this type", "float16", _TYPES)
    target_dtype: str = option("get this one", "float32", _TYPES)

    @property
    def closeness(self) -> Closeness:
        narrow = {self.source_dtype, self.target_dtype} - {"float32", "double", "int64", "int32"}
        return Closeness(0.02, f"{' and '.join(sorted(narrow))} rounds what goes in and comes out") if narrow else SAME

    def check(self, model: Model | Planned, target: Target) -> None:
        if self.source_dtype == self.target_dtype:
            raise ColdpressError(f"source_dtype and target_dtype are both {self.source_dtype}, so nothing would change")
        super().check(model, target)

    def check_graphs(self, graphs: Mapping[str, ir.Model], target: Target) -> None:
        if not any(self._chosen(one.graph) for one in graphs.values()):
            raise self._nothing([one.graph for one in graphs.values()])

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        for value in self._chosen(graph.graph):
            self._convert(graph.graph, value)
        return Rewritten(graph)

    def _chosen(self, graph: ir.Graph) -> list[ir.Value]:
        source = _type(self.source_dtype)
        ends = [value for value in (*graph.inputs, *graph.outputs) if not value.is_initializer()]
        return [
            value for value in ends if fnmatch.fnmatchcase(str(value.name), self.name_pattern) and value.dtype == source
        ]

    def _nothing(self, graphs: list[ir.Graph]) -> ColdpressError:
        ends = {str(value.name): value.dtype for graph in graphs for value in (*graph.inputs, *graph.outputs)}
        found = ", ".join(f"{name} {dtype.name.lower() if dtype else '?'}" for name, dtype in ends.items())
        return ColdpressError(
            f"no input or output that matches '{self.name_pattern}' is {self.source_dtype}; found: {found}",
            hint=did_you_mean(self.name_pattern, ends),
        )

    def _convert(self, graph: ir.Graph, value: ir.Value) -> None:
        import onnx_ir as ir

        inner, outer = _type(self.source_dtype), _type(self.target_dtype)
        if value.is_graph_input():
            cast = ir.node("Cast", [value], attributes={"to": inner.value}, name=f"{value.name}/Cast")
            cast.outputs[0].name, cast.outputs[0].shape = f"{value.name}.{self.source_dtype}", value.shape
            cast.outputs[0].dtype = inner
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
            cast.replace_input_with(0, value)
            graph.insert_before(next(iter(graph)), cast)
            value.dtype = outer
            return
        cast = ir.node("Cast", [value], attributes={"to": outer.value}, name=f"{value.name}/Cast")
        made = cast.outputs[0]
        made.shape, made.dtype, made.name = value.shape, outer, value.name
        value.name = f"{value.name}.{self.source_dtype}"
        graph.append(cast)
        graph.outputs[list(graph.outputs).index(value)] = made


def _type(name: str) -> ir.DataType:
    import onnx_ir as ir

    return ir.DataType[{"float32": "FLOAT"}.get(name, name.upper())]
