"""Finding the linear layers and embeddings of a captured graph.

mobius writes every linear layer as ``[Concat(weights) ->] Transpose -> MatMul [-> Add(bias)]`` with the weight as the
checkpoint has it, ``[out, in]``, and every embedding as ``Gather(weight, ids)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir


@dataclass
class Linear:
    """One matrix product: ``weights`` are initializers ``[out, in]``, stacked along the outputs when fused."""

    module: str
    matmul: ir.Node
    weights: list[ir.Value]
    obsolete: list[ir.Node]  # the Transpose (and Concat) that a rewritten product no longer needs

    @property
    def rows(self) -> int:
        return sum(int(weight.shape[0]) for weight in self.weights)

    @property
    def columns(self) -> int:
        return int(self.weights[0].shape[1])


@dataclass
class Embedding:
    """One lookup of token ids in ``weight`` ``[vocabulary, hidden]``."""

    module: str
    gather: ir.Node
    weight: ir.Value


def find_linears(graph: ir.Graph, sources: Mapping[str, Any]) -> Iterator[Linear]:
    """Every linear layer whose weights come from the checkpoint, in the order of the graph."""
    for node in graph:
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            continue
        transpose = _producer(node.inputs[1], "Transpose")
        if transpose is None or list(transpose.attributes.get_ints("perm", [])) != [1, 0]:
            continue
        concat = _producer(transpose.inputs[0], "Concat")
        weights = list(concat.inputs) if concat is not None else [transpose.inputs[0]]
        if all(weight is not None and weight.name in sources and len(weight.shape) == 2 for weight in weights):
            obsolete = [transpose] + ([concat] if concat is not None else [])
            yield Linear(_module_name(weights), node, weights, obsolete)


def find_embeddings(graph: ir.Graph, sources: Mapping[str, Any], vocabulary: int) -> Iterator[Embedding]:
    """Every lookup of a token; position and type tables are small and stay as they are."""
    for node in graph:
        if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].name in sources:
            weight = node.inputs[0]
            if (
                len(weight.shape) == 2
                and int(weight.shape[0]) >= vocabulary > 0
                and node.attributes.get_int("axis", 0) == 0
            ):
                yield Embedding(_strip(weight.name), node, weight)


def find_head(graph: ir.Graph, linears: list[Linear]) -> Linear | None:
    """The linear layer whose product becomes ``logits``; None for models that give hidden states."""
    if not graph.outputs or not any(output.name == "logits" for output in graph.outputs):
        return None
    by_node = {id(linear.matmul): linear for linear in linears}
    pending = [output.producer() for output in graph.outputs if output.name == "logits"]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(node) in by_node:
            return by_node[id(node)]
        pending.extend(value.producer() for value in node.inputs if value is not None)
    return None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _module_name(weights: list[ir.Value]) -> str:
    """``...qkv_proj`` or ``...gate_up_proj`` for fused projections, else the weight's name without ``.weight``."""
    names = [_strip(weight.name) for weight in weights]
    if len(names) == 1:
        return names[0]
    parent, _, _ = names[0].rpartition(".")
    leaves = [name.rpartition(".")[2] for name in names]
    roots = [leaf.removesuffix("_proj") for leaf in leaves]
    fused = ("" if all(len(root) == 1 for root in roots) else "_").join(roots) + "_proj"
    return f"{parent}.{fused}" if parent else fused


def _strip(name: str | None) -> str:
    return (name or "").removesuffix(".weight")
