"""Graphs that others wrote in int8: ONNX Runtime's quantizers, kept from what they do wrong.

They go by the names of operators alone, and so take the Attention of ONNX for the one of com.microsoft, whose inputs
mean other things: such nodes stay float. They keep all activations of a calibration in memory: here the ranges are
taken batch by batch. Weights are in memory as a whole, about three times.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean, raised_as
from coldpress.graphs.imported.inputs import Feed
from coldpress.graphs.imported.tools import blaming, quiet
from coldpress.graphs.queries import constant, is_onnx, known_before
from coldpress.graphs.session import options_for_work
from coldpress.models.onnx_graphs import array_of, load_graph
from coldpress.target import Target

#: operators of com.microsoft that share their name with one of ONNX, which is not what the quantizers take it for
_MISTAKEN = ("Attention",)
_QUANTIZED = ("DequantizeLinear", "QuantizeLinear", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul")
_TOOL = "ONNX Runtime's quantizer"
#: said of a result whose range nobody asked for
_SEVEN_BITS = "weights have 7 bits, as int8 products overflow on this machine's processor (x86 without VNNI)"
#: tensors from this size on lie beside a written graph, which cannot be larger than 2 GB itself
_BESIDE_BYTES = 1 << 30
_SHOWN = 5


@dataclass(frozen=True)
class Choice:
    """Which nodes become int8: those whose operator is in ``op_types``, but for the names that match globs in
    ``exclude``; with ``only``, just those names. ``weight_type``, ``activation_type``: int8 or uint8.
    ``reduce_range``: weights have 7 bits; None: where this machine's sums of products overflow.
    """

    op_types: tuple[str, ...]
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    weight_type: str = "int8"
    activation_type: str = "uint8"
    per_channel: bool = True
    reduce_range: bool | None = None

    def for_target(self, target: Target) -> Choice:
        """The choice with a range that products on the target do not overflow with."""
        if self.reduce_range is not None:
            return self
        return replace(self, reduce_range=target.short_name == "cpu" and self.weight_type == "int8" and overflows())

    def remarks(self, settled: Choice) -> list[str]:
        """What a report says of the choice that this one became for a target."""
        return [_SEVEN_BITS] if settled.reduce_range and self.reduce_range is None else []

    def check(self, file: Path) -> None:
        """Raise ColdpressError when nothing would be quantized, and for names that no node has."""
        graph = load_graph(file).graph
        counted = Counter(node.op_type for node in graph)
        if any(kind in counted for kind in _QUANTIZED):
            raise ColdpressError(
                f"{file.name} is quantized already: it has {_counted(counted, _QUANTIZED)}",
                hint="quantize the float model that it was made from",
            )
        names = [str(node.name) for node in graph]
        for pattern in (*self.only, *self.exclude):
            if not fnmatch.filter(names, pattern):
                raise ColdpressError(
                    f"'{pattern}' matches no node of {file.name}",
                    hint=f"{did_you_mean(pattern, names[:200])} (a glob over whole names)",
                )
        if not self.nodes(graph):
            raise ColdpressError(
                f"no node of {file.name} can become int8: it has {_counted(counted, sorted(counted)) or 'none'}",
                hint=f"looked for {', '.join(self.op_types)}",
            )

    def nodes(self, graph: ir.Graph) -> list[str]:
        """The names of the chosen nodes.

        Those that compute in another type than float32 are not among them, nor those with a weight that may be
        replaced. Nor are a Gemm with alpha or beta, whose bias ONNX Runtime scales wrongly, and products of two
        activations: for some small ones it gives zeros.
        """
        known = known_before(graph)
        return [
            str(node.name)
            for node in graph
            if node.op_type in self.op_types
            and not any(_is_foreign(value) for value in (*node.inputs, *node.outputs) if value is not None)
            and (node.op_type != "MatMul" or not known.isdisjoint(node.inputs))
            and not (node.op_type == "Gemm" and _is_scaled(node))
            and not is_onnx(node, *_MISTAKEN)
            and (not self.only or any(fnmatch.fnmatchcase(str(node.name), pattern) for pattern in self.only))
            and not any(fnmatch.fnmatchcase(str(node.name), pattern) for pattern in self.exclude)
        ]


def _is_scaled(node: ir.Node) -> bool:
    """Whether a Gemm multiplies its product, or the bias that it has."""
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return alpha != 1 or (has_bias and beta != 1)


def _is_foreign(value: ir.Value) -> bool:
    """Whether a value has a float type that the quantizers take for float32, or is a weight that may be replaced."""
    tensor = constant(value)
    dtype = value.dtype if tensor is None else tensor.dtype
    return dtype in _OTHER_FLOATS or (value.is_initializer() and value.is_graph_input())


_OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


def has_operator(file: Path, op_type: str) -> bool:
    return any(node.op_type == op_type for node in load_graph(file).graph)


def _sound(choice: Choice, graph: ir.Graph) -> list[str]:
    """The nodes of a choice; ColdpressError for one whose weight has no range, as a number in it is none."""
    nodes = choice.nodes(graph)
    chosen = set(nodes)
    for node in graph:
        for value in node.inputs if node.name in chosen else ():
            tensor = constant(value)
            if tensor is not None and tensor.dtype == ir.DataType.FLOAT and not np.isfinite(array_of(tensor)).all():
                raise ColdpressError(
                    f"tensor '{tensor.name}' of {node.op_type} '{node.name}' holds NaN or infinity",
                    hint="the model is damaged or its training diverged: get another copy,"
                    " or leave that node out with --nodes_to_exclude",
                )
    return nodes


def quantize_dynamic(copy: Path, target: Path, choice: Choice) -> Counter[str]:
    """Weights in int8, activations when they come; returns how many nodes of each operator became int8."""
    from onnxruntime.quantization import quantize_dynamic as dynamic

    nodes = _sound(choice, load_graph(copy).graph)
    with quiet(), blaming(_TOOL, copy.name):
        dynamic(
            copy,
            target,
            op_types_to_quantize=list({"MatMul", *choice.op_types}),  # what a Gemm is made to
            nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
            per_channel=choice.per_channel,
            reduce_range=bool(choice.reduce_range),
            weight_type=_type(choice.weight_type),
            use_external_data_format=_is_large(copy),
            extra_options={"MatMulConstBOnly": True},
        )
    return _finished(copy, target, nodes)


@dataclass(frozen=True)
class Calibration:
    """How ranges of activations are found: ``method`` is minmax, entropy or percentile.

    ``moving_average`` (minmax): the weight of a new batch; None takes the extremes of all. ``feeds`` gives the batches.
    """

    method: str
    feeds: Iterable[Feed]
    percentile: float = 99.999
    moving_average: float | None = None
    provider: str = "CPUExecutionProvider"
    threads: int = 0
    done: Callable[[], None] = lambda: None


def quantize_static(
    copy: Path, target: Path, choice: Choice, calibration: Calibration, as_operators: bool, options: dict[str, Any]
) -> Counter[str]:
    """Weights and activations in int8, in ranges from ``calibration``; returns how many nodes of each operator became
    int8.

    ``as_operators``: QLinear operators instead of QuantizeLinear and DequantizeLinear around the float ones.
    ``options``: ONNX Runtime's extra options of the quantizer.
    """
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode, load_model_with_shape_infer

    nodes = _sound(choice, load_graph(copy).graph)
    with quiet(), blaming(_TOOL, copy.name):
        ranges = _ranges(copy, choice, calibration)
        model = load_model_with_shape_infer(copy)
        types = (_type(choice.weight_type), _type(choice.activation_type))
        rest: tuple[Any, ...] = (ranges, nodes, [], list(choice.op_types), options)
        if as_operators:
            mode = QuantizationMode.QLinearOps
            quantizer = ONNXQuantizer(model, choice.per_channel, bool(choice.reduce_range), mode, True, *types, *rest)
        else:
            quantizer = QDQQuantizer(model, choice.per_channel, bool(choice.reduce_range), *types, *rest)
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(target, _is_large(copy))
    return _finished(copy, target, nodes)


def _ranges(copy: Path, choice: Choice, calibration: Calibration) -> Any:
    """The range of every activation, one batch in memory at a time."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    own: dict[str, Any] = {"percentile": {"percentile": calibration.percentile}}.get(calibration.method, {})
    if calibration.moving_average is not None:
        own = {"moving_average": True, "averaging_constant": calibration.moving_average}
    augmented = copy.with_name("watched.onnx")
    calibrator = create_calibrator(
        copy,
        list(choice.op_types),
        str(augmented),
        methods[calibration.method],
        _is_large(copy),
        providers=[calibration.provider],
        extra_options=own,
    )
    options = options_for_work(calibration.threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    calibrator.infer_session = onnxruntime.InferenceSession(str(augmented), options, providers=[calibration.provider])
    batches = 0

    def told(error: BaseException) -> ColdpressError:
        return ColdpressError(
            f"ONNX Runtime cannot run the model on batch {batches} of the calibration data: {error}",
            hint="check the data against the model's inputs",
            exit_code=WORK_FAILED,
        )

    for feed in calibration.feeds:
        with raised_as(told):
            calibrator.collect_data(_One(feed))
        batches += 1
        calibration.done()
    if not batches:
        raise ColdpressError("the calibration data holds no batch")
    return calibrator.compute_data()


class _One:
    """A reader of calibration data with one batch."""

    def __init__(self, feed: Feed):
        self._feed: Feed | None = feed

    def get_next(self) -> Feed | None:
        feed, self._feed = self._feed, None
        return feed


def _finished(before: Path, after: Path, nodes: Sequence[str]) -> Counter[str]:
    """Give a written graph back the functions that the quantizers forget; what `_became_int8` says."""
    known, made = load_graph(before), load_graph(after)
    if len(known.functions) > len(made.functions):
        made.functions.update(known.functions)
        made.opset_imports.update({**known.opset_imports, **made.opset_imports})
        ir.save(made, after)
    return _became_int8(before, after, nodes)


def _became_int8(before: Path, after: Path, nodes: Sequence[str]) -> Counter[str]:
    """How many of the chosen nodes, by operator, had float weights that nobody reads any more."""
    graph, chosen = load_graph(before).graph, set(nodes)
    left = {value.name for node in load_graph(after).graph for value in node.inputs if value is not None}
    made = Counter(node.op_type for node in graph if node.name in chosen and (own := _weights(node)) and not own & left)
    if not made:
        raise ColdpressError(
            "nothing became int8: no chosen node has a constant float weight of a known type",
            hint="run the pass onnx_peephole_optimizer before it, or choose other op_types_to_quantize",
        )
    return made


def _weights(node: ir.Node) -> set[str | None]:
    """The names of the constant float matrices that a node reads."""
    tensors = {value.name: value.const_value for value in node.inputs if value is not None and value.is_initializer()}
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return {name for name, one in tensors.items() if one is not None and one.dtype in floats and len(one.shape) > 1}


@cache
def overflows() -> bool:
    """Whether products of uint8 and int8 overflow in ONNX Runtime on this machine, as on x86 without VNNI.

    There, sums of two products have 16 bits and saturate (docs of ONNX Runtime's quantization). Found by the largest
    product there is.
    """
    import onnxruntime

    size = 64
    weight = ir.tensor(np.full((size, size), 127, np.int8), name="weight")
    given, product = (ir.Value(name=name) for name in ("given", "product"))
    given.type, given.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([1, size])
    product.type, product.shape = ir.TensorType(ir.DataType.INT32), ir.Shape([1, size])
    constant = ir.Value(name="weight", const_value=weight, type=ir.TensorType(weight.dtype), shape=weight.shape)
    node = ir.Node("", "MatMulInteger", [given, constant], outputs=[product])
    graph = ir.Graph([given], [product], nodes=[node], initializers=[constant], opset_imports={"": 13})
    session = onnxruntime.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [found] = session.run(None, {"given": np.full((1, size), 255, np.uint8)})
    return bool((found != 255 * 127 * size).any())


def said(made: Counter[str], before: Path) -> str:
    """What became int8 and what did not, in a line."""
    graph = load_graph(before).graph
    left = Counter(node.op_type for node in graph if node.op_type in made and _weights(node))
    left.subtract(made)
    kept = _counted(+left, sorted(+left))
    return f"int8: {_counted(made, sorted(made))}" + (f"; float: {kept}" if kept else "")


def _counted(counts: Counter[str], kinds: Iterable[str]) -> str:
    found = [f"{counts[kind]} {kind}" for kind in kinds if counts[kind]]
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")


def _type(name: str) -> Any:
    from onnxruntime.quantization import QuantType

    types = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8, "int16": QuantType.QInt16, "uint16": QuantType.QUInt16}
    return types[name]


#: what one tensor may have of its own -> the type of the value
_OVERRIDES = {"quant_type": str, "symmetric": bool, "reduce_range": bool, "rmin": float, "rmax": float, "axis": int}
TYPES = ("int8", "uint8", "int16", "uint16")


def check_overrides(tensors: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raise ColdpressError for a way to quantize a tensor that ONNX Runtime does not have."""
    for name, channels in tensors.items():
        for one in channels:
            for key, value in one.items():
                if key not in _OVERRIDES:
                    raise ColdpressError(
                        f"tensor_quant_overrides: '{name}' has '{key}'", hint=did_you_mean(key, _OVERRIDES)
                    )
                if not isinstance(value, (int, float) if _OVERRIDES[key] is float else _OVERRIDES[key]):
                    raise ColdpressError(f"tensor_quant_overrides: {key} of '{name}' is {value!r}")
            if one.get("quant_type", TYPES[0]) not in TYPES:
                raise ColdpressError(
                    f"tensor_quant_overrides: quant_type of '{name}' is {one['quant_type']!r}",
                    hint=did_you_mean(one["quant_type"], TYPES),
                )


def overrides_for_runtime(tensors: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The same as ONNX Runtime's quantizer takes it."""
    return {name: [_for_runtime(one) for one in channels] for name, channels in tensors.items()}


def _for_runtime(one: Mapping[str, Any]) -> dict[str, Any]:
    made = {key: np.float32(value) if key in ("rmin", "rmax") else value for key, value in one.items()}
    return {**made, "quant_type": _type(one["quant_type"])} if "quant_type" in one else made


def _is_large(copy: Path) -> bool:
    return sum(file.stat().st_size for file in copy.parent.glob("model.onnx*")) >= _BESIDE_BYTES
