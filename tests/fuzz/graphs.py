"""Random ONNX graphs: everything that exporters are known to write, and some that they might.

A graph is a chain of blocks, each of which takes rows ``[axis, width]`` and gives rows of some width. What the graph as
a whole is like (opset, names, where tensors lie) is drawn, too. Numbers stay near the normal distribution, so that a
wrong result is a far one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
AXES = ("N", "batch", "?", "", "-1", "batch size", "1.0", "p2o.DynamicDimension.0", "a*b", "N-1", "unk__7", "größe")
OPSETS = tuple(range(9, 24))
Block = Callable[["Graph", str, int], tuple[str, int]]


@dataclass
class Graph:
    """A graph on its way. ``stamp`` makes names; ``inner`` counts how deep in subgraphs it is."""

    random: np.random.Generator
    opset: int
    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    functions: list[Any] = field(default_factory=list)
    sparse: list[Any] = field(default_factory=list)
    weights: dict[tuple[int, int], str] = field(default_factory=dict)
    domains: set[str] = field(default_factory=set)
    is_main: bool = True
    names: str = "plain"  # or "none"
    stamp: list[int] = field(default_factory=lambda: [0])

    def name(self, what: str = "v") -> str:
        self.stamp[0] += 1
        return f"{what}{self.stamp[0]}"

    def pick(self, *values: Any) -> Any:
        return values[int(self.random.integers(len(values)))]

    def add(self, kind: str, inputs: list[str], outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Append a node; the name of its output, or of its outputs."""
        made = [self.name() for _ in range(outputs)]
        label = self.name(kind) if self.names == "plain" else ""
        self.nodes.append(helper.make_node(kind, inputs, made, label, domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def tensor(self, values: Any, dtype: Any = np.float32, what: str = "w") -> str:
        """A constant: an initializer, or the value of a Constant node."""
        array = np.asarray(values, dtype)
        if self.random.random() < 0.2:
            return str(self.add("Constant", [], value=numpy_helper.from_array(array)))
        name = self.name(what)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def matrix(self, rows: int, columns: int) -> str:
        """A weight; now and then one that was there before."""
        known = self.weights.get((rows, columns))
        if known and self.random.random() < 0.4:
            return known
        self.weights[rows, columns] = self.tensor(self.random.standard_normal((rows, columns)) / rows**0.5)
        return self.weights[rows, columns]

    def axes(self, axes: list[int], kind: str, x: str, **attributes: Any) -> str:
        """An operator whose axes became an input in opset 13 (ReduceSum, Unsqueeze, Squeeze)."""
        if self.opset < 13:
            return str(self.add(kind, [x], axes=axes, **attributes))
        return str(self.add(kind, [x, self.tensor(axes, np.int64)], **attributes))

    def part(self) -> Graph:
        """A subgraph, whose nodes may read what is around it."""
        return Graph(self.random, self.opset, domains=self.domains, is_main=False, names=self.names, stamp=self.stamp)

    def closed(self, name: str, outputs: list[Any], inputs: list[Any] | None = None) -> Any:
        return helper.make_graph(self.nodes, name, inputs or [], outputs, self.tensors)


def rows(name: str, width: int | None, axis: str | None = None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, [axis, width])


# Blocks


def product(g: Graph, x: str, width: int) -> tuple[str, int]:
    wide = g.pick(8, 32, 48, width)
    y = g.add("MatMul", [x, g.matrix(width, wide)])
    return (g.add("Add", [y, g.tensor(g.random.standard_normal(wide) / 4)]) if g.pick(0, 1) else y), wide


def gemm(g: Graph, x: str, width: int) -> tuple[str, int]:
    wide, turned = g.pick(8, 32, width), g.pick(0, 1)
    weight = g.matrix(wide, width) if turned else g.matrix(width, wide)
    bias = [g.tensor(g.random.standard_normal(wide) / 4)] if g.opset < 11 or g.pick(0, 1) else g.pick([], [""])
    return g.add("Gemm", [x, weight, *bias], transB=turned, alpha=g.pick(1.0, 1.0, 0.5)), wide


def turned_weight(g: Graph, x: str, width: int) -> tuple[str, int]:
    return g.add("MatMul", [x, g.add("Transpose", [g.matrix(32, width)], perm=[1, 0])]), 32


def double_weight(g: Graph, x: str, width: int) -> tuple[str, int]:
    weight = g.tensor(g.random.standard_normal((width, width)) / width**0.5, np.float64)
    return g.add("Cast", [g.add("MatMul", [g.add("Cast", [x], to=TensorProto.DOUBLE), weight])], to=FLOAT), width


def half(g: Graph, x: str, width: int) -> tuple[str, int]:
    weight = g.tensor(g.random.standard_normal((width, 32)) / width**0.5, np.float16)
    y = g.add("MatMul", [g.add("Cast", [x], to=TensorProto.FLOAT16), weight])
    return g.add("Cast", [y], to=FLOAT), 32


def activation(g: Graph, x: str, width: int) -> tuple[str, int]:
    return g.add(g.pick("Relu", "Tanh", "Sigmoid", "LeakyRelu", "Softplus", "Elu"), [x]), width


def clip(g: Graph, x: str, width: int) -> tuple[str, int]:
    if g.opset < 11:
        return g.add("Clip", [x], min=-2.0, max=2.0), width
    return g.add("Clip", g.pick([x, "", g.tensor(2.0)], [x, g.tensor(-2.0), g.tensor(2.0)], [x, g.tensor(-2.0)])), width


def norm(g: Graph, x: str, width: int) -> tuple[str, int]:
    scale, bias = g.tensor(1 + g.random.standard_normal(width) / 8), g.tensor(g.random.standard_normal(width) / 8)
    if g.opset >= 17 and g.pick(0, 1):
        return g.add("LayerNormalization", g.pick([x, scale, bias], [x, scale]), axis=-1), width
    mean = {"axes": [-1]} if g.opset < 18 else {}
    last = [] if g.opset < 18 else [g.tensor([-1], np.int64)]
    centred = g.add("Sub", [x, g.add("ReduceMean", [x, *last], **mean)])
    square = g.add("Pow", [centred, g.tensor(2.0)])
    deviation = g.add("Sqrt", [g.add("Add", [g.add("ReduceMean", [square, *last], **mean), g.tensor(1e-5)])])
    return g.add("Add", [g.add("Mul", [g.add("Div", [centred, deviation]), scale]), bias]), width


def gelu(g: Graph, x: str, width: int) -> tuple[str, int]:
    erf = g.add("Erf", [g.add("Div", [x, g.tensor(2**0.5)])])
    return g.add("Mul", [g.add("Mul", [x, g.add("Add", [erf, g.tensor(1.0)])]), g.tensor(0.5)]), width


def residual(g: Graph, x: str, width: int) -> tuple[str, int]:
    for _ in range(g.pick(1, 2, 12)):
        x = g.add("Mul", [g.add("Add", [x, g.add("Tanh", [x])]), g.tensor(0.7)])
    return x, width


def identities(g: Graph, x: str, width: int) -> tuple[str, int]:
    for _ in range(g.pick(1, 3)):
        x = g.add("Identity", [x])
    return x, width


def doubled(g: Graph, x: str, width: int) -> tuple[str, int]:
    """The same work twice, and a node that nobody reads."""
    scale = g.tensor(g.random.standard_normal(width))
    g.add("Exp", [x])
    return g.add("Add", [g.add("Mul", [x, scale]), g.add("Mul", [x, scale])]), width


def folded(g: Graph, x: str, width: int) -> tuple[str, int]:
    made = g.add("Add", [g.tensor(g.random.standard_normal(width)), g.tensor(np.ones(width))])
    return g.add("Mul", [x, made]), width


def lookup(g: Graph, x: str, width: int) -> tuple[str, int]:
    """A column picks a row of a table: always the same one, so that rounding does not decide."""
    table = g.tensor(g.random.standard_normal((max(width, 64), 48)))
    ramp = g.add(
        "Add", [g.add("Mul", [x, g.tensor(0.0)]), g.tensor(4.0 * np.eye(width)[int(g.random.integers(width))])]
    )
    return g.add("Gather", [table, g.add("ArgMax", [ramp], axis=-1, keepdims=0)]), 48


def attention(g: Graph, x: str, width: int) -> tuple[str, int]:
    """Rows look at each other."""
    q, k, v = (g.add("MatMul", [x, g.matrix(width, 16)]) for _ in range(3))
    scores = g.add("Mul", [g.add("MatMul", [q, g.add("Transpose", [k], perm=[1, 0])]), g.tensor(0.25)])
    return g.add("MatMul", [g.add("Softmax", [scores], axis=-1), v]), 16


def convolution(g: Graph, x: str, width: int) -> tuple[str, int]:
    """Rows as pictures of one line."""
    picture = g.axes([1, 2], "Unsqueeze", x)
    kernel = g.tensor(g.random.standard_normal((4, 1, 1, 3)) / 3**0.5)
    bias = g.pick([], [g.tensor(g.random.standard_normal(4) / 4)])
    y = g.add("Conv", [picture, kernel, *bias], pads=[0, 1, 0, 1])
    if g.pick(0, 1):
        scale, rest, ones = np.ones(4), np.zeros(4), np.full(4, 1.5)
        y = g.add("BatchNormalization", [y, *(g.tensor(one) for one in (scale, rest, rest, ones))])
    if g.pick(0, 1):
        y = g.add("MaxPool", [g.add("Relu", [y])], kernel_shape=[1, 3], pads=[0, 1, 0, 1])
    return g.add("Flatten", [y]), 4 * width


def recurrent(g: Graph, x: str, width: int) -> tuple[str, int]:
    """Rows as steps of one sequence."""
    kind, gates = g.pick(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    size, ways = 8, g.pick(1, 2)
    draw = lambda *shape: g.tensor(g.random.standard_normal((ways, *shape)) / shape[-1] ** 0.5)  # noqa: E731
    tensors = [draw(gates * size, width), draw(gates * size, size)]
    rest = g.pick([], [g.tensor(g.random.standard_normal((ways, 2 * gates * size)) / 8)])
    steps = g.axes([1], "Unsqueeze", x)
    direction = {"direction": "bidirectional"} if ways == 2 else {}
    y = g.add(kind, [steps, *tensors, *rest], outputs=2, hidden_size=size, **direction)[0]
    return g.add("Reshape", [y, g.tensor([-1, ways * size], np.int64)]), ways * size


def quantized(g: Graph, x: str, width: int) -> tuple[str, int]:
    """A product that is int8 already: of QDQ, or of integer operators."""
    if g.opset < 10:
        return x, width
    codes = g.random.integers(-127, 127, (width, 32)).astype(np.int8)
    scale, zero = g.tensor(0.05), g.tensor(128, np.uint8)
    q = g.add("QuantizeLinear", [x, scale, zero])
    if g.pick(0, 1):
        weight = g.add("DequantizeLinear", [g.tensor(codes, np.int8), g.tensor(0.002)])
        return g.add("MatMul", [g.add("DequantizeLinear", [q, scale, zero]), weight]), 32
    whole = g.add("MatMulInteger", [q, g.tensor(codes, np.int8), zero])
    return g.add("Mul", [g.add("Cast", [whole], to=FLOAT), g.tensor(0.0001)]), 32


def choice(g: Graph, x: str, width: int) -> tuple[str, int]:
    """If, whose branches read what is around them; sometimes a constant decides."""
    total = g.axes([0, 1], "ReduceSum", x, keepdims=0)
    is_known = g.pick(False, False, True)
    condition = g.tensor(g.pick(False, True), np.bool_) if is_known else g.add("Greater", [total, g.tensor(0.0)])
    branches = []
    for kind in ("Identity", g.pick("Neg", "product", "If")):
        part = g.part()
        if kind == "product":
            y = part.add("MatMul", [x, g.pick(part, g).matrix(width, width)])
        elif kind == "If":
            inner = [g.part() for _ in range(2)]
            ends = [one.add("Mul", [x, one.tensor(2.0 + place)]) for place, one in enumerate(inner)]
            graphs = [one.closed("inner", [rows(end, width)]) for one, end in zip(inner, ends, strict=True)]
            y = part.add("If", [condition], then_branch=graphs[0], else_branch=graphs[1])
        else:
            y = part.add(kind, [x])
        branches.append(part.closed("branch", [rows(y, width)]))
    return g.add("If", [condition], then_branch=branches[0], else_branch=branches[1]), width


def loop(g: Graph, x: str, width: int) -> tuple[str, int]:
    part = g.part()
    step, go, state = (g.name() for _ in range(3))
    scale = g.tensor(g.random.standard_normal(width) / 4)
    y = part.add("Add", [state, part.add("Mul", [x, scale])])
    inputs = [
        helper.make_tensor_value_info(step, TensorProto.INT64, []),
        helper.make_tensor_value_info(go, TensorProto.BOOL, []),
        rows(state, width),
    ]
    on = part.add("Identity", [go])
    body = part.closed("body", [helper.make_tensor_value_info(on, TensorProto.BOOL, []), rows(y, width)], inputs)
    count = g.tensor(g.pick(1, 3), np.int64)
    return g.add("Loop", [count, g.pick("", g.tensor(True, np.bool_)), x], body=body), width


def scan(g: Graph, x: str, width: int) -> tuple[str, int]:
    """Means of the rows so far, later ones counting more."""
    part = g.part()
    state, row = g.name(), g.name()
    total = part.add("Mul", [part.add("Add", [state, row]), part.tensor(0.5)])
    inputs = [helper.make_tensor_value_info(one, FLOAT, [width]) for one in (state, row)]
    seen = part.add("Mul", [total, part.tensor(1.5)])
    body = part.closed("body", [helper.make_tensor_value_info(one, FLOAT, [width]) for one in (total, seen)], inputs)
    return g.add("Scan", [g.tensor(np.zeros(width)), x], outputs=2, body=body, num_scan_inputs=1)[1], width


def local_function(g: Graph, x: str, width: int) -> tuple[str, int]:
    name = g.name("Twice")
    nodes = [helper.make_node("Tanh", ["a"], ["t"]), helper.make_node("Add", ["t", "a"], ["b"])]
    imports = [helper.make_opsetid("", g.opset)]
    g.functions.append(helper.make_function("local", name, ["a"], ["b"], nodes, imports))
    g.domains.add("local")
    return g.add(name, [x], domain="local"), width


def sparse_weight(g: Graph, x: str, width: int) -> tuple[str, int]:
    name = g.name("sparse")
    values = numpy_helper.from_array(g.random.standard_normal(width).astype(np.float32), name)
    places = numpy_helper.from_array(np.arange(width) * width + g.random.permutation(width), f"{name}_places")
    g.sparse.append(helper.make_sparse_tensor(values, places, [width, width]))
    return g.add("MatMul", [x, name]), width


def contrib(g: Graph, x: str, width: int) -> tuple[str, int]:
    g.domains.add("com.microsoft")
    return g.add("FusedMatMul", [x, g.matrix(32, width)], domain="com.microsoft", transB=1), 32


def shapes(g: Graph, x: str, width: int) -> tuple[str, int]:
    """The usual way of exporters to flatten: Shape, Gather, Unsqueeze, Concat, Reshape."""
    count = g.add("Gather", [g.add("Shape", [x]), g.tensor(0, np.int64)], axis=0)
    whole = g.add("Concat", [g.axes([0], "Unsqueeze", count), g.tensor([width], np.int64)], axis=0)
    return g.add("Reshape", [x, whole]), width


def split(g: Graph, x: str, width: int) -> tuple[str, int]:
    half_width = width // 2
    more = [g.tensor([half_width, width - half_width], np.int64)] if g.opset >= 13 else []
    own = {} if more else {"split": [half_width, width - half_width]}
    one, two = g.add("Split", [x, *more], outputs=2, axis=1, **own)
    return g.add("Concat", [two, one], axis=1), width


BLOCKS: tuple[Block, ...] = (
    *(product, product, gemm, gemm, turned_weight, double_weight, half, activation, clip, norm, norm, gelu, residual),
    *(identities, doubled, folded, lookup, attention, convolution, convolution, recurrent, quantized, choice, choice),
    *(loop, scan, local_function, sparse_weight, contrib, shapes, split),
)


@dataclass(frozen=True)
class Case:
    """A model, the names of its blocks, and what makes inputs for so many rows."""

    model: onnx.ModelProto
    blocks: tuple[str, ...]
    feed: Callable[[int], dict[str, np.ndarray]]


def random_case(seed: int) -> Case:
    """One graph; the same for the same number."""
    random = np.random.default_rng(seed)
    g = Graph(random, int(random.choice(OPSETS)), names=str(random.choice(["plain", "none"])))
    axis, width = str(random.choice(AXES)), int(random.choice([8, 32, 40]))
    kind = int(random.choice([FLOAT, FLOAT, FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64]))
    g.inputs.append(rows("x", width, axis, kind) if kind != TensorProto.INT64 else rows("x", 1, axis, kind))
    x = "x"
    if kind == TensorProto.INT64:
        table = g.tensor(random.standard_normal((64, width)))
        x = g.add("Reshape", [g.add("Gather", [table, "x"]), g.tensor([-1, width], np.int64)])
    elif kind != FLOAT:
        x = g.add("Cast", ["x"], to=FLOAT)
    used = []
    outputs: dict[str, int] = {}
    for _ in range(int(random.integers(2, 9))):
        block = BLOCKS[int(random.integers(len(BLOCKS)))]
        x, width = block(g, x, width)
        used.append(block.__name__)
        if random.random() < 0.15 and x != "x":
            outputs[x] = width
    outputs[g.add("Identity", [x])] = width
    if random.random() < 0.2:
        outputs[g.add("Identity", [x])] = width
    ends = [rows(name, wide) for name, wide in outputs.items()]
    if random.random() < 0.15:  # as before IR 4: every initializer is an input, too
        g.inputs += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in g.tensors]
    made = helper.make_graph(g.nodes, "network", g.inputs, ends, g.tensors, sparse_initializer=g.sparse)
    imports = [helper.make_opsetid("", g.opset), *(helper.make_opsetid(one, 1) for one in sorted(g.domains))]
    ir_version = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7}.get(g.opset, 8 if g.opset < 19 else 9)
    model = helper.make_model(
        made, opset_imports=imports, functions=g.functions, ir_version=max(ir_version, 8) if g.functions else ir_version
    )

    def feed(count: int) -> dict[str, np.ndarray]:
        drawn = np.random.default_rng(seed + count)
        if kind == TensorProto.INT64:
            return {"x": drawn.integers(0, 64, (count, 1))}
        wide = int(g.inputs[0].type.tensor_type.shape.dim[1].dim_value)
        return {"x": drawn.standard_normal((count, wide)).astype(helper.tensor_dtype_to_np_dtype(kind))}

    return Case(model, tuple(used), feed)
