"""Attention with heads that the kernel of ``GroupQueryAttention`` does not take.

Its kernel wants heads of a multiple of 8, and rotates only halves of a multiple of 8 of heads of a multiple of 16.
Other heads are rotated by an operator of their own in front of it, and padded with zeros, which change no product of a
query with a key; what they add to the values is cut off again. The caches of keys and values hold the padded heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

_MULTIPLE = 8
_CONTRIB = "com.microsoft"


def fit_heads(graph: ir.Graph) -> None:
    """Rewrite in place what no kernel runs; graphs whose heads fit are left as they are."""
    for node in [node for node in graph if node.op_type == "GroupQueryAttention"]:
        size = int(node.inputs[3].shape[3])
        half = _half(node)
        rotates = node.attributes.get_int("do_rotary", 0) == 1
        pads = size % _MULTIPLE != 0
        if not pads and not (rotates and (size % (2 * _MULTIPLE) or half % _MULTIPLE)):
            continue
        heads = _Heads(graph, node, size)
        heads.part()
        if rotates:
            heads.rotate(half)
        if pads:
            heads.pad()


def _half(node: ir.Node) -> int:
    """How many numbers of a head are rotated with as many others: the columns of the rotary cache, or of its chosen
    part."""
    cache = node.inputs[7] if len(node.inputs) > 8 else None
    if cache is None:
        return 0
    if cache.shape is None and cache.producer() is not None:
        cache = cache.producer().inputs[0]
    return int(cache.shape[-1])


@dataclass
class _Heads:
    """One ``GroupQueryAttention`` and the values around it."""

    graph: ir.Graph
    node: ir.Node
    size: int
    count: int = 0
    last: ir.Node | None = None  # behind which comes what works on the result

    @property
    def numbers(self) -> tuple[int, int, int]:
        """How many heads queries, keys and values have."""
        queries, keys = (self.node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads"))
        return queries, keys, keys

    def part(self) -> None:
        """Take queries, keys and values apart where one product gives all of them."""
        if self.node.inputs[1] is not None:
            return
        sizes = self._constant([number * self.size for number in self.numbers])
        split = ir.node("Split", [self.node.inputs[0], sizes], attributes={"axis": -1}, num_outputs=3)
        self._place(split)
        for place, output in enumerate(split.outputs):
            self.node.replace_input_with(place, output)

    def rotate(self, half: int) -> None:
        """Rotate queries and keys in front of the attention; positions count on from what the cache holds."""
        positions = self._positions()
        for place in (0, 1):
            turned = ir.node(
                "RotaryEmbedding",
                [self.node.inputs[place], positions, *self.node.inputs[7:9]],
                attributes={
                    "interleaved": self.node.attributes.get_int("rotary_interleaved", 0),
                    "num_heads": self.numbers[place],
                    "rotary_embedding_dim": 0 if 2 * half == self.size else 2 * half,
                },
                domain=_CONTRIB,
            )
            self._place(turned)
            self.node.replace_input_with(place, turned.outputs[0])
        for place in (7, 8):
            self.node.replace_input_with(place, None)
        self.node.attributes.add(ir.AttrInt64("do_rotary", 0))
        self.node.attributes.pop("rotary_interleaved", None)

    def _positions(self) -> ir.Value:
        """The positions of the tokens, ``[batch, tokens]``: the last of them is ``seqlens_k``."""
        last = self._apply("Reshape", self._cast(self.node.inputs[5]), self._constant([-1, 1]))
        tokens = self._apply("Squeeze", self._shape(self.node.inputs[0], 1))
        one, zero = (self._constant(number) for number in (1, 0))
        back = self._apply("Range", self._apply("Sub", one, tokens), one, one)
        return self._apply("Max", self._apply("Add", last, back), zero)

    def pad(self) -> None:
        """Fill heads up with zeros, in the caches too, and cut the results to what they were."""
        padded = -(-self.size // _MULTIPLE) * _MULTIPLE
        if self.node.attributes.get_float("scale", 0.0) == 0.0:
            self.node.attributes.add(ir.AttrFloat32("scale", self.size**-0.5))
        for place, number in enumerate(self.numbers):
            apart = self._apply("Reshape", self.node.inputs[place], self._constant([0, 0, number, self.size]))
            filled = self._apply("Pad", apart, self._constant([0] * 7 + [padded - self.size]))
            joined = self._apply("Reshape", filled, self._constant([0, 0, number * padded]))
            self.node.replace_input_with(place, joined)
        for cache in (*self.node.inputs[3:5], *self.node.outputs[1:3]):
            cache.shape = ir.Shape([*cache.shape[:3], padded])
        self._cut(padded)

    def _cut(self, padded: int) -> None:
        result = self.node.outputs[0]
        uses = list(result.uses())
        number = self.numbers[0]
        apart = self._apply("Reshape", result, self._constant([0, 0, number, padded]), after=True)
        limits = [self._constant([limit]) for limit in (0, self.size, 3)]
        cut = self._apply("Slice", apart, *limits, after=True)
        joined = self._apply("Reshape", cut, self._constant([0, 0, number * self.size]), after=True)
        joined.shape, result.shape = result.shape, None
        for user, place in uses:
            user.replace_input_with(place, joined)

    def _cast(self, value: ir.Value) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": ir.DataType.INT64})
        self._place(node)
        return node.outputs[0]

    def _shape(self, value: ir.Value, axis: int) -> ir.Value:
        node = ir.node("Shape", [value], attributes={"start": axis, "end": axis + 1})
        self._place(node)
        return node.outputs[0]

    def _apply(self, operator: str, *values: ir.Value, after: bool = False) -> ir.Value:
        node = ir.node(operator, values)
        self._place(node, after)
        return node.outputs[0]

    def _place(self, node: ir.Node, after: bool = False) -> None:
        self.count += 1
        node.name = f"coldpress/{node.op_type}_{self.count}_of_{self.node.name}"
        for number, output in enumerate(node.outputs):
            output.name = f"{node.name}.{number}"
            output.type = self.node.inputs[0].type if node.op_type in ("Split", "RotaryEmbedding") else None
        if after:
            self.graph.insert_after(self.last or self.node, node)
            self.last = node
        else:
            self.graph.insert_before(self.node, node)

    def _constant(self, numbers: list[int] | int) -> ir.Value:
        name = "coldpress/int64_" + "_".join(map(str, numbers if isinstance(numbers, list) else ["scalar", numbers]))
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor = ir.tensor(numbers, dtype=ir.DataType.INT64, name=name)
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=tensor.shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value
