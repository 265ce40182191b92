"""The pooling of sentence-transformers as a part of the graph: an output ``sentence_embedding [texts, size]``.

So that every runtime gives the vector of a text, and nobody has to know how it is made of those of its tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.sentence_transformer import Pooling

TOKENS, EMBEDDING = "last_hidden_state", "sentence_embedding"


def has_tokens(model: ir.Model | None) -> bool:
    """Whether a graph gives the vectors of tokens."""
    return model is not None and any(value.name == TOKENS for value in model.graph.outputs)


def add_pooling(model: ir.Model, pooling: Pooling) -> None:
    """Add the output to a graph with ``last_hidden_state`` and an ``attention_mask`` that is 0 for padding."""
    graph = model.graph
    tokens = next((value for value in graph.outputs if value.name == TOKENS), None)
    mask = next((value for value in graph.inputs if value.name == "attention_mask"), None)
    if tokens is None or mask is None or tokens.dtype is None:
        raise ColdpressError("a graph without last_hidden_state and attention_mask cannot be pooled",
                             exit_code=WORK_FAILED)  # fmt: skip
    write = _Writer(graph, tokens.dtype)
    pooled = [write.pooled(mode, tokens, mask) for mode in pooling.modes]
    found = write("Concat", *pooled, axis=-1) if len(pooled) > 1 else pooled[0]
    if pooling.normalizes:
        found = write("Div", found, write("ReduceL2", found, write.whole([-1]), keepdims=1))
    found.name, found.type = EMBEDDING, ir.TensorType(tokens.dtype)
    hidden = tokens.shape[-1] if tokens.shape is not None else "hidden"
    size = hidden * len(pooled) if isinstance(hidden, int) else "size"
    found.shape = ir.Shape([mask.shape[0] if mask.shape is not None else "batch", size])
    graph.outputs.append(found)


class _Writer:
    """Appends nodes to a graph that computes in ``dtype``."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType):
        self._graph, self._dtype, self._count = graph, dtype, 0

    def __call__(self, operator: str, *values: ir.Value, **attributes: int) -> ir.Value:
        self._count += 1
        node = ir.node(operator, values, attributes, name=f"pooling/{operator}_{self._count}")
        node.outputs[0].name = node.name
        self._graph.append(node)
        return node.outputs[0]

    def whole(self, numbers: list[int]) -> ir.Value:
        return self._constant(np.array(numbers, np.int64))

    def number(self, value: float) -> ir.Value:
        return self._constant(np.array(value, self._dtype.numpy()))

    def _constant(self, array: np.ndarray) -> ir.Value:
        self._count += 1
        tensor = ir.tensor(array, name=f"pooling/constant_{self._count}")
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def pooled(self, mode: str, tokens: ir.Value, mask: ir.Value) -> ir.Value:
        """The vector ``[texts, hidden]`` that one way of pooling gives."""
        if mode == "cls":
            return self("Gather", tokens, self._constant(np.array(0, np.int64)), axis=1)
        if mode == "last":
            count = self("ReduceSum", mask, self.whole([1]), keepdims=1)
            place = self("Unsqueeze", self("Sub", count, self.whole([1])), self.whole([-1]))
            return self("Squeeze", self("GatherND", tokens, place, batch_dims=1), self.whole([1]))
        shown = self("Unsqueeze", self("Cast", mask, to=int(self._dtype)), self.whole([-1]))
        if mode == "max":
            hidden = self("Where", self("Cast", shown, to=int(ir.DataType.BOOL)), tokens, self.number(self._lowest))
            return self("ReduceMax", hidden, self.whole([1]), keepdims=0)
        total = self("ReduceSum", self("Mul", tokens, shown), self.whole([1]), keepdims=0)
        count = self("ReduceSum", shown, self.whole([1]), keepdims=0)
        return self("Div", total, count if mode == "mean" else self("Sqrt", count))

    @property
    def _lowest(self) -> float:
        return -65504.0 if self._dtype == ir.DataType.FLOAT16 else -3.0e38
