"""Turn the float32 numbers of an ONNX graph into float16: half the size, for devices that compute in it.

ONNX Runtime's converter changes the graph; large tensors are rounded one after the other while they are written.
Operators without a float16 kernel, and those that are named, stay float32 between casts. Values beyond the range of
float16 are cut to it, which the report says.

The CPU provider has no float16 products: it would cast every layer to float32 and back, so it is refused there.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.imported.tools import blaming
from coldpress.graphs.shapes import infer_shapes
from coldpress.models.model import Model
from coldpress.models.onnx_graphs import is_beside, read
from coldpress.models.planned import Planned
from coldpress.models.provenance import Provenance
from coldpress.parts import Closeness, option, refuse
from coldpress.parts.graph_pass import GraphContext, GraphPass, Rewritten
from coldpress.rules.half_precision import half_on_cpu
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_SMALLEST, _LARGEST = 5.96e-8, 65504.0
_SHOWN = 200
#: their scales are float32 in opsets before 19, and their results are float32 or whole numbers
_OF_INT8 = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
    *("QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM"),
    *("QLinearAdd", "QLinearMul", "QGemm", "QLinearGlobalAveragePool", "QAttention"),
)


@dataclass(frozen=True)
class OnnxFloatToFloat16(GraphPass):
    """Turn the float32 numbers of an ONNX graph into float16."""

    version: ClassVar[int] = 5
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    keep_io_types: bool | tuple[str, ...] = option("inputs and outputs stay float32: all, none, or those named", False)
    op_block_list: tuple[str, ...] = option("operators that stay float32, beside those without a float16 kernel", ())
    op_include_list: tuple[str, ...] = option("operators that become float16 though they are among those", ())
    node_block_list: tuple[str, ...] = option("globs over names of nodes that stay float32", ())
    force_fp16_inputs: dict[str, tuple[int, ...]] = option(
        "operators that stay float32 -> those of their inputs, by number, that become float16", dict
    )
    min_positive_val: float = option("smaller weights that are not zero become this", _SMALLEST)
    max_finite_val: float = option("larger weights become this", _LARGEST)

    @property
    def closeness(self) -> Closeness:
        return Closeness(0.03, "float16 has 11 significant bits, which sums over thousands of products lose a few of")

    def check(self, model: Model | Planned, target: Target) -> None:
        refuse(half_on_cpu("float16", target, "use the pass onnx_dynamic_quantization, or a GPU with --device gpu"))
        if not 0 <= self.min_positive_val < self.max_finite_val <= _LARGEST:
            raise ColdpressError(
                f"min_positive_val {self.min_positive_val:g} and max_finite_val {self.max_finite_val:g} leave no range",
                hint=f"float16 goes to {_LARGEST:g}",
            )
        super().check(model, target)

    def check_graphs(self, graphs: Mapping[str, ir.Model], target: Target) -> None:
        names = [node.name or "" for one in graphs.values() for node in one.graph]
        for pattern in self.node_block_list:
            if not fnmatch.filter(names, pattern):
                raise ColdpressError(f"'{pattern}' matches no node", hint=did_you_mean(pattern, names[:_SHOWN]))
        ends = [name for one in graphs.values() for name in _ends(one.graph)]
        for name in self.keep_io_types if isinstance(self.keep_io_types, tuple) else ():
            if name not in ends:
                raise ColdpressError(
                    f"keep_io_types: there is no input or output '{name}'", hint=did_you_mean(name, ends)
                )

    def provenance(self, known: Provenance) -> Provenance:
        return replace(known, precision="fp16", layers=())

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        ctx.progress(f"converting {ctx.name}", 0, 1)
        initializers = graph.graph.initializers.items()
        tensors = {name: value.const_value for name, value in initializers if value.const_value is not None}
        made, names = self._converted(graph, ctx.name)
        _find_files(made, tensors)
        cut = [name for name in names if self._round(made, tensors[name], name)]
        cut += self._cut_by_converter(made, tensors)
        said = f"numbers beyond the range of float16 were cut in {', '.join(cut[:4])}"
        return Rewritten(made, (said,) if cut else ())

    def _converted(self, source: ir.Model, name: str) -> tuple[ir.Model, list[str]]:
        """The graph with float16 types, and which of its tensors in files have to follow.

        Those pass as inputs for the converter, which would read them all at once otherwise.
        """
        import onnx_ir as ir
        from onnx_ir.passes.common import TopologicalSortPass
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        infer_shapes(source)
        replaceable = [value for value in source.graph.inputs if value.is_initializer()]
        for value in replaceable:
            source.graph.inputs.remove(value)
        operators = {*DEFAULT_OP_BLOCK_LIST, *_OF_INT8, *self.op_block_list} - set(self.op_include_list)
        blocked = {node.name for node in source.graph if any(fnmatch.fnmatchcase(node.name or "", pattern)
                   for pattern in self.node_block_list)}  # fmt: skip
        ends = list(_ends(source.graph))
        outside = [
            value
            for value in source.graph.initializers.values()
            if is_beside(value.const_value) and value.dtype == ir.DataType.FLOAT
            if any(use.node.op_type not in operators and use.node.name not in blocked for use in value.uses())
        ]
        for value in outside:
            del source.graph.initializers[str(value.name)]
            source.graph.inputs.append(value)
        _read_others(source)
        with blaming("ONNX Runtime's converter to float16", name):
            converted = convert_float_to_float16(
                ir.to_proto(source),
                self.min_positive_val,
                self.max_finite_val,
                keep_io_types=[name for name in ends if self._keeps(name)] or False,
                disable_shape_infer=True,
                op_block_list=sorted(operators),
                force_fp16_inputs={name: list(places) for name, places in self.force_fp16_inputs.items()},
                node_block_list=sorted(name for name in blocked if name),
            )
        _drop_doubled_casts(converted.graph)
        made = ir.from_proto(converted)
        TopologicalSortPass()(made)
        names = {str(value.name) for value in outside}
        for value in [value for value in made.graph.inputs if value.name in names]:
            made.graph.inputs.remove(value)
            made.graph.initializers[str(value.name)] = value
        for value in (made.graph.initializers[str(value.name)] for value in replaceable):
            if value.const_value is not None:
                value.dtype = value.const_value.dtype
            made.graph.inputs.append(value)
        return made, sorted(names)

    def _keeps(self, end: str) -> bool:
        """Whether an input or output stays float32."""
        return self.keep_io_types if isinstance(self.keep_io_types, bool) else end in self.keep_io_types

    def _round(self, made: ir.Model, tensor: ir.TensorProtocol, name: str) -> bool:
        """Let a tensor be rounded when it is written; whether numbers of it will be cut."""
        import onnx_ir as ir

        def rounded() -> ir.Tensor:
            values = tensor.numpy()
            small = (values != 0) & (np.abs(values) < self.min_positive_val)
            values = np.where(small, np.copysign(self.min_positive_val, values), values)
            return ir.Tensor(np.clip(values, -self.max_finite_val, self.max_finite_val).astype(np.float16), name=name)

        made.graph.initializers[name].const_value = ir.LazyTensor(
            rounded, dtype=ir.DataType.FLOAT16, shape=tensor.shape, name=name
        )
        return bool(np.abs(tensor.numpy()).max(initial=0.0) > self.max_finite_val)

    def _cut_by_converter(self, made: ir.Model, tensors: Mapping[str, ir.TensorProtocol]) -> list[str]:
        """Vectors and matrices in the graph itself that the converter cut.

        A single number says that something is masked.
        """
        import onnx_ir as ir

        return [
            name
            for name, tensor in tensors.items()
            if tensor.dtype == ir.DataType.FLOAT
            and not is_beside(tensor)
            and tensor.size > 1
            and name in made.graph.initializers
            and made.graph.initializers[name].dtype == ir.DataType.FLOAT16
            and float(np.abs(tensor.numpy()).max()) > self.max_finite_val
        ]


def _ends(graph: ir.Graph) -> Iterator[str]:
    """The names of inputs and outputs."""
    return (str(value.name) for value in (*graph.inputs, *graph.outputs))


def _read_others(model: ir.Model) -> None:
    """Bring tensors that the converter touches itself, such as those of subgraphs, into memory."""
    import onnx_ir as ir

    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and is_beside(tensor) and tensor.dtype == ir.DataType.FLOAT:
                value.const_value = read(tensor)


def _drop_doubled_casts(graph: onnx.GraphProto) -> None:
    """Keep one of the casts that the converter puts in front of each reader of a tensor, all of the same name."""
    seen = set[str]()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            graph.node.remove(node)
        seen.update(node.output)


def _find_files(made: ir.Model, tensors: Mapping[str, ir.TensorProtocol]) -> None:
    """Tell tensors that stay as they are in which file they lie."""
    import onnx_ir as ir

    for name, value in made.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = tensors[name]
