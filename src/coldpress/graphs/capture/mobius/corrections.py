"""What mobius 0.1 gets wrong, put right: masks, windows, scales and rotary caches that its graphs lose.

Each was found by comparing a tiny model's logits with transformers' (``tests/graphs/test_architectures.py``). A
correction leaves alone what is right already, so a mobius without the fault needs none of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from coldpress.errors import ColdpressError
from coldpress.graphs.capture.mobius.heads import fit_heads
from coldpress.graphs.capture.mobius.rotation import complete_yarn

#: settings of GPT-2 that mobius 0.1 passes over, and their usual values
_NOT_FOLLOWED = {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True}


def correct(graph: ir.Graph, hf_config: Any, config: Any) -> None:
    """Correct a captured graph in place.

    ``hf_config``: transformers' configuration, None where it has none; ``config``: mobius'.

    Raises ColdpressError for a setting that the graph does not follow.
    """
    for name, usual in _NOT_FOLLOWED.items():
        if (found := getattr(hf_config, name, usual)) != usual:
            raise ColdpressError(
                f"{name} is {found} in config.json; the graph of this architecture has attention without it"
            )
    _follow_configuration(graph, hf_config)
    _clip(graph, hf_config)
    _drop_zero_bias(graph)
    _scale_embedding(graph, config)
    complete_yarn(graph, hf_config, config)
    _choose_rotary_cache(graph, config)
    _mask_padding(graph)
    fit_heads(graph)
    _correct_cross_shapes(graph)
    _omit_unread_outputs(graph)
    _name_batch(graph)


def _name_batch(graph: ir.Graph) -> None:
    """Call the axis of the batch ``batch_size``: transformers.js makes an empty cache for axes that are called so."""
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value == "batch":
                value.shape[axis] = ir.SymbolicDim("batch_size")


def _follow_configuration(graph: Any, config: Any) -> None:
    """Give each ``GroupQueryAttention`` the scale and the window that transformers' configuration says its layer has.

    mobius 0.1 swaps Gemma 2's layers, takes Gemma 3's scale from the head size, leaves the windows out where only some
    layers of a plain decoder have one, and names the rotated part of a head, which the operator sees from its cache.
    """
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    scalar = getattr(config, "query_pre_attn_scalar", None)
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        node.attributes.pop("rotary_embedding_dim", None)
        if scalar:
            node.attributes.add(ir.AttrFloat32("scale", scalar**-0.5))
        if kinds and window:
            kind = kinds[int(node.inputs[3].name.split(".")[1])]
            size = {"sliding_attention": int(window), "full_attention": -1}.get(kind)
            if size is not None:
                node.attributes.add(ir.AttrInt64("local_window_size", size))
            if kind == "full_attention" and config.model_type in _ROTATED_IN_WINDOWS:
                node.attributes.add(ir.AttrInt64("do_rotary", 0))
                for place in (7, 8):
                    node.replace_input_with(place, None)


#: model types whose layers that see everything do not rotate
_ROTATED_IN_WINDOWS = ("cohere2", "exaone4")


def _clip(graph: Any, config: Any) -> None:
    """Limit queries, keys and values where the configuration says so (OLMo's ``clip_qkv``), which mobius leaves out."""
    limit = getattr(config, "clip_qkv", None)
    if limit is None:
        return
    for node in [node for node in graph if node.op_type == "GroupQueryAttention"]:
        insert = _Inserter(graph, node)
        for place in range(3):
            if (value := node.inputs[place]) is not None:
                limits = (insert.constant(bound, value.dtype or ir.DataType.FLOAT) for bound in (-limit, limit))
                clipped = insert("Clip", value, *limits)
                clipped.type, clipped.shape = value.type, value.shape
                node.replace_input_with(place, clipped)


def _drop_zero_bias(graph: Any) -> None:
    """Leave the bias out of a norm without parameters (OLMo's), for which mobius makes up ones and zeros."""
    for node in graph:
        place = {"LayerNormalization": 2, "SkipLayerNormalization": 3}.get(node.op_type)
        if place is None or len(node.inputs) != place + 1:
            continue
        scale, bias = (
            ir.convenience.get_const_tensor(value) for value in node.inputs[place - 1 :] if value is not None
        )
        if scale is not None and bias is not None and (scale.numpy() == 1).all() and not bias.numpy().any():
            node.resize_inputs(place)


def _scale_embedding(graph: Any, config: Any) -> None:
    """Multiply an embedding by the root of its width, where mobius rounds that to two digits (Gemma)."""
    root = config.hidden_size**0.5
    for node in list(graph):
        if node.op_type != "Mul" or len(node.inputs) != 2 or node.inputs[0].producer() is None:
            continue
        factor = ir.convenience.get_const_tensor(node.inputs[1])
        is_one = factor is not None and factor.size == 1 and node.inputs[0].producer().op_type == "Gather"
        if is_one and abs(float(factor.numpy().item()) - root) < 0.02:
            node.replace_input_with(1, _Inserter(graph, node).constant(root, factor.dtype))


@dataclass
class _Inserter:
    """Writes nodes of ONNX into a graph, in front of one that will read them."""

    graph: ir.Graph
    reader: ir.Node
    count: int = 0

    def __call__(self, operator: str, *values: ir.Value) -> ir.Value:
        node = ir.node(operator, values, name=self._name(operator))
        node.outputs[0].name = node.name
        self.graph.insert_before(self.reader, node)
        return node.outputs[0]

    def constant(self, numbers: list[int] | float, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        tensor = ir.tensor(numbers, dtype=dtype, name=self._name("constant"))
        value = ir.Value(name=tensor.name, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _name(self, what: str) -> str:
        self.count += 1
        return f"coldpress/{what}_{self.count}_of_{self.reader.name}"


def _choose_rotary_cache(graph: Any, config: Any) -> None:
    """Let LongRoPE (Phi-3's long contexts) take the half of its rotary cache that suits the length of the text.

    mobius stacks the cache of texts up to the original context length on that of longer ones, and adds the height of
    the first to the positions of a long text; ``GroupQueryAttention`` counts positions itself and would miss that.
    """
    short = getattr(config, "original_max_position_embeddings", None)
    readers = [node for node in graph if node.op_type == "GroupQueryAttention" and len(node.inputs) > 8]
    if getattr(config, "rope_type", None) != "longrope" or not short or not readers:
        return
    first = readers[0]
    caches, rows = first.inputs[7:9], int(first.inputs[7].shape[0])
    if rows == short:
        return
    insert = _Inserter(graph, first)
    long = insert("Greater", first.inputs[6], insert.constant([short], ir.DataType.INT32))
    start = insert("Where", long, insert.constant([short]), insert.constant([0]))
    stop = insert("Where", long, insert.constant([rows]), insert.constant([short]))
    chosen = [insert("Slice", cache, start, stop) for cache in caches]
    for node in readers:
        for place, cache in zip((7, 8), chosen, strict=True):
            node.replace_input_with(place, cache)


def _mask_padding(graph: Any) -> None:
    """Let the attention of an encoder of texts skip padding: a token sees key ``k`` where ``mask[k] >= mask[token]``.

    So padding sees all, which keeps its rows finite. mobius 0.1 hands BERT's mask ``[batch, tokens]`` to an operator
    that reads [queries, keys], and leaves DistilBERT's out.
    """
    inputs = {value.name: value for value in graph.inputs}
    mask = inputs.get("attention_mask")
    attentions = [node for node in graph if node.op_type == "Attention" and node.domain == ""]
    wrong = [node for node in attentions if len(node.inputs) == 3 or (mask is not None and node.inputs[3] is mask)]
    if "input_ids" not in inputs or not wrong or any("past" in name for name in inputs):
        return
    if mask is None:
        ids = inputs["input_ids"]
        mask = ir.Value(name="attention_mask", type=ids.type, shape=ids.shape)
        graph.inputs.append(mask)
    insert = _Inserter(graph, wrong[0])
    key, query = (insert("Unsqueeze", mask, insert.constant([1, axis])) for axis in (2, 3))
    seen = insert("GreaterOrEqual", key, query)
    for node in wrong:
        node.resize_inputs(max(4, len(node.inputs)))
        node.replace_input_with(3, seen)


def _correct_cross_shapes(graph: Any) -> None:
    """State the outputs of cross attention as ``[batch, heads, encoder length, head size]``, as their past is
    stated."""
    past = {value.name.replace("past_key_values.", "present."): value.shape for value in graph.inputs}
    for output in graph.outputs:
        if ".cross." in output.name and output.name in past:
            output.shape = past[output.name]


def _omit_unread_outputs(graph: ir.Graph) -> None:
    """Leave the names of a norm's optional outputs empty where nobody reads them, so that they are not computed."""
    for node in graph:
        if node.op_type in ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization"):
            for output in node.outputs[1:]:
                if not output.uses() and not output.is_graph_output():
                    output.name = ""
