"""Finding the weights of a graph that others wrote: what MatMul and Gemm multiply with, and the tables of Gather.

A weight is a constant matrix, an initializer or the value of a Constant node; a Transpose or an Identity may lie
between. Subgraphs (If, Loop, Scan) and functions are not looked into.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from coldpress.graphs.imported.spans import FLOATS
from coldpress.graphs.linears import Linear, find_head
from coldpress.graphs.queries import all_nodes, constant, is_onnx, maker, readers
from coldpress.graphs.scoring import PICKED

#: smaller weights stay float: scales and kernels would cost more than the bytes are worth
LEAST_WEIGHTS = 1024
#: tables with less than this share of the rows of the largest stay float: they hold positions or types, not tokens
_TOKEN_TABLE = 1 / 16


@dataclass(eq=False)
class Weight:
    """One constant matrix ``[rows, columns]``, its columns along the inputs, and the nodes that read it.

    ``is_turned``: it is stored as ``[columns, rows]``. ``obsolete``: the nodes between it and its readers. ``inputs``:
    the tensors that it is multiplied with, each once.
    """

    value: ir.Value
    tensor: Any
    is_turned: bool
    role: str = "linear"  # "linear", "head" or "embedding"
    products: list[ir.Node] = field(default_factory=list)
    lookups: list[ir.Node] = field(default_factory=list)
    obsolete: list[ir.Node] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the initializer."""
        return str(self.value.name)

    @property
    def layer(self) -> str:
        """What a reader of a report knows it by: the initializer's name, or the node's where that says nothing."""
        reader = [*self.products, *self.lookups][0].name or self.name
        if not _is_anonymous(self.name):
            return re.sub(r"\.weight(_t)?$", "", self.name)
        return re.sub(r"[/.](MatMul|Gemm|Gather)(_\d+)?$", "", reader).strip("/").replace("/", ".")

    @property
    def names(self) -> list[str]:
        """Every name that a user may mean it by."""
        readers = [str(node.name) for node in (*self.products, *self.lookups) if node.name]
        return [self.layer, self.name, *readers, *(["lm_head"] if self.role == "head" else [])]

    @property
    def rows(self) -> int:
        return int(self.tensor.shape[1 if self.is_turned else 0])

    @property
    def columns(self) -> int:
        return int(self.tensor.shape[0 if self.is_turned else 1])


@dataclass
class Found:
    """The weights of a graph in its order, and those that stay float: reason -> names."""

    weights: list[Weight] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def skip(self, reason: str, weights: list[Weight]) -> None:
        """Leave these weights float."""
        if weights:
            self.skipped[reason] += [weight.layer for weight in weights]
            self.weights = [weight for weight in self.weights if weight not in weights]


def find_weights(model: ir.Model) -> Found:
    """Every weight of the main graph that could be quantized, with its role."""
    found, by_value = Found(), dict[ir.Value, Weight]()
    for node in model.graph:
        reading = _reading(node)
        if reading is None:
            continue
        weight = by_value.setdefault(reading.value, Weight(reading.value, reading.tensor, reading.is_turned))
        (weight.lookups if node.op_type == "Gather" else weight.products).append(node)
        weight.obsolete += [between for between in reading.between if between not in weight.obsolete]
        if reading.problem or weight.is_turned != reading.is_turned:
            found.skipped[reading.problem or "read both as it is and transposed"].append(weight.layer)
            weight.role = "skipped"
    found.weights = [weight for weight in by_value.values() if weight.role != "skipped"]
    for weight in found.weights:
        weight.inputs = list(dict.fromkeys(str(_observed(node).name) for node in weight.products))
    _name_roles(model.graph, found.weights)
    tables = [weight.rows for weight in found.weights if weight.lookups]
    few_rows = max(tables, default=0) * _TOKEN_TABLE
    for reason, applies in (
        ("also read by other nodes", _has_other_readers),
        (f"fewer than {LEAST_WEIGHTS:,} weights", lambda weight: weight.tensor.size < LEAST_WEIGHTS),
        ("small tables, of positions or types", lambda weight: weight.role == "embedding" and weight.rows < few_rows),
    ):
        found.skip(reason, [weight for weight in found.weights if applies(weight)])
    if hidden := _hidden_products(model):
        found.skipped["inside If, Loop, Scan or a function"] += hidden
    return found


@dataclass
class _Reading:
    """How a node reads a constant; ``problem``: why that cannot be quantized, or nothing."""

    value: ir.Value
    tensor: Any
    is_turned: bool
    between: list[ir.Node]
    problem: str


def _reading(node: ir.Node) -> _Reading | None:
    """The constant matrix that a MatMul, Gemm or Gather reads; None where it reads none."""
    if not is_onnx(node, "MatMul", "Gemm", "Gather"):
        return None
    value = node.inputs[0 if node.op_type == "Gather" else 1]
    is_turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
    between = []
    while value is not None and (step := maker(value)) is not None and _only_turns(step):
        is_turned ^= step.op_type == "Transpose"
        between.append(step)
        value = step.inputs[0]
    tensor = constant(value)
    if value is None:
        return None
    is_matrix = tensor is not None and len(tensor.shape) == 2
    if is_matrix and tensor.dtype in FLOATS:
        return _Reading(value, tensor, is_turned, between, _problem(node))
    is_float = tensor is not None and tensor.dtype in (*FLOATS, ir.DataType.DOUBLE) and tensor.size >= LEAST_WEIGHTS
    if node.op_type != "Gather" and is_float:
        return _Reading(value, tensor, is_turned, between, "no matrices of float32, float16 or bfloat16")
    if node.op_type != "Gather" and value.is_graph_input() and value.is_initializer():
        return _Reading(value, value.const_value, is_turned, between, "inputs of the graph, which may be replaced")
    return None


def _problem(node: ir.Node) -> str:
    attributes = node.attributes
    if node.op_type == "Gather":
        return "tables that are not read along their first axis" if attributes.get_int("axis", 0) else ""
    if node.op_type == "Gemm" and (
        attributes.get_int("transA", 0)
        or attributes.get_float("alpha", 1.0) != 1
        or (attributes.get_float("beta", 1.0) != 1 and len(node.inputs) > 2 and node.inputs[2] is not None)
    ):
        return "of a Gemm with alpha, beta or transA"
    shape = node.inputs[0].shape
    return "multiplied with a vector" if shape is not None and len(shape) == 1 else ""


def _only_turns(node: ir.Node) -> bool:
    turns = is_onnx(node, "Transpose") and list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]
    return turns or is_onnx(node, "Identity")


def _has_other_readers(weight: Weight) -> bool:
    """Whether something else needs the floats: then they would have to stay beside the codes."""
    known = {*weight.products, *weight.lookups, *weight.obsolete}
    values = [weight.value, *(output for node in weight.obsolete for output in node.outputs)]
    return any(value.is_graph_output() or not known.issuperset(readers(value)) for value in values)


def _name_roles(graph: ir.Graph, weights: list[Weight]) -> None:
    """Tell the head and the tables from the other weights; a table that is tied to the head counts as the head."""
    products = {id(node): weight for weight in weights for node in weight.products}
    head = find_head(graph, [Linear("", node, [], []) for weight in weights for node in weight.products])
    for weight in weights:
        weight.role = "linear" if weight.products else "embedding"
    if head is not None:
        products[id(head.matmul)].role = "head"


def _observed(node: ir.Node) -> ir.Value:
    """The input of a product; that of all positions where the graph keeps the last one only."""
    value = node.inputs[0]
    picked = maker(value)
    return picked.inputs[0] if picked is not None and picked.name == PICKED else value


def _hidden_products(model: ir.Model) -> list[str]:
    shown = set(model.graph)
    inner = (node for node in all_nodes(model) if node not in shown)
    return [str(node.name or node.op_type) for node in inner if node.op_type in ("MatMul", "Gemm")]


def _is_anonymous(name: str) -> bool:
    """Whether an exporter made a name up: ``onnx::MatMul_123``, ``val_7``, ``42``."""
    return bool(re.fullmatch(r"(onnx::)?(MatMul|Gemm|Gather|Transpose|val|v|const|t)?_?\d+(_.*)?", name))


def by_size(weights: list[Weight], most_bytes: int) -> Iterator[list[Weight]]:
    """Groups of weights whose distinct inputs have Gram matrices of at most so many bytes, or are one matrix.

    Weights with the same input are in the same group.
    """
    first_seen: dict[str, int] = {}
    for weight in weights:
        first_seen.setdefault(weight.inputs[0], len(first_seen))
    group: list[Weight] = []
    inputs: dict[str, int] = {}
    for weight in sorted(weights, key=lambda weight: first_seen[weight.inputs[0]]):
        more = {**inputs, **dict.fromkeys(weight.inputs, 4 * weight.columns**2)}
        if group and len(more) > len(inputs) and sum(more.values()) > most_bytes:
            yield group
            group, more = [], dict.fromkeys(weight.inputs, 4 * weight.columns**2)
        group.append(weight)
        inputs = more
    if group:
        yield group
