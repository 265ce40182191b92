"""A Hugging Face configuration becomes an ONNX graph with named, empty weights.

mobius (https://github.com/onnxruntime/mobius) writes the graph declaratively, already fused for the execution
provider; no weight is read. Which tensor of the checkpoint fills which initializer is found by running mobius'
own preparation of weights on stand-ins, see ``sources_of``. Its fusion of attention is replaced by one that keeps
what a mask says, see ``_exact_attention``.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean
from coldpress.graphs import deferred_torch
from coldpress.networks.checkpoint import Checkpoint, Span

_SUPPORTED_COMPONENTS = ({"model"}, {"encoder", "decoder"})
#: architectures whose result is made by a head that mobius leaves out
_TASK_HEADS = (
    "Classification",
    "QuestionAnswering",
    "MultipleChoice",
    "NextSentencePrediction",
    "Detection",
    "Segmentation",
)
#: operators that a mask is built of when it only says: not the future, not the padding, not beyond a window
_MASK_OPS = frozenset(
    [
        "And",
        "Cast",
        "Concat",
        "Constant",
        "CumSum",
        "Expand",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "Shape",
        "Slice",
        "Sub",
        "Unsqueeze",
        "Where",
    ]
)


@dataclass
class Captured:
    """``components``: graphs by name. ``sources``: the checkpoint's span for each initializer, by component."""

    components: dict[str, Any]  # name -> onnx_ir.Model
    sources: dict[str, Span]
    config: Any
    hf_config: dict[str, Any]


def capture(folder: Path, *, provider: str, dtype: str, scratch: Path, trust_remote_code: bool = False) -> Captured:
    """Build the graph of the model in ``folder`` for an execution provider (``cpu``, ``cuda``, ...).

    ``dtype`` is ``f32``, ``f16`` or ``bf16``. ``scratch`` receives a copy of the configuration and tensors that had to be
    computed. To be called in a worker process: it hides torch, see ``deferred_torch``.
    """
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    deferred_torch.hide()
    import transformers  # noqa: F401  (before torch is visible, so that it leaves its own model code alone)

    known = _known_to_transformers(_config_for_mobius(hf_config, scratch), trust_remote_code)
    deferred_torch.defer()
    package, module = _build(scratch, hf_config, provider, dtype, trust_remote_code)
    if set(package) not in _SUPPORTED_COMPONENTS:
        raise ColdpressError(
            f"'{hf_config.get('model_type')}' has the parts {sorted(package)}; coldpress presses single models and encoder-decoders",
            hint="press the text model alone if the checkpoint has one",
        )
    for component in package.values():
        _require_head(component.graph, hf_config)
        _follow_configuration(component.graph, known)
        _choose_rotary_cache(component.graph, package.config)
        _mask_padding(component.graph)
        _correct_cross_shapes(component.graph)
    sources = sources_of(module, Checkpoint(folder), scratch)
    return Captured(dict(package.items()), sources, package.config, hf_config)


def _config_for_mobius(config: dict[str, Any], scratch: Path) -> Path:
    """Write a config.json that names no dtype (resolving it would import torch; we always say which we want).

    DistilBERT gets two settings that mobius looks for under the names that other models have.
    """

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in ("dtype", "torch_dtype")}
        return value

    if config.get("model_type") == "distilbert":
        config = {"intermediate_size": config.get("hidden_dim", 3072), "layer_norm_eps": 1e-12, **config}
    (scratch / "config.json").write_text(json.dumps(strip(config)), encoding="utf-8")
    return scratch


def _known_to_transformers(folder: Path, trust_remote_code: bool) -> Any:
    """The configuration, loaded while torch is hidden; None for models that only mobius knows."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError):
        return None


def _build(
    folder: Path, hf_config: dict[str, Any], provider: str, dtype: str, trust_remote_code: bool
) -> tuple[Any, Any]:
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of each initializer without a value: all of ours
    warnings.simplefilter("ignore")
    import mobius
    import mobius._optimizations

    mobius._optimizations.group_query_attention_rules = _exact_attention
    model_type = hf_config.get("model_type", "")
    architecture = (hf_config.get("architectures") or [""])[0]
    registered = [name for name in (architecture, model_type) if name in mobius.registry]
    if not registered:
        known = [str(name) for name in mobius.registry.architectures()]
        raise ColdpressError(f"unknown architecture '{model_type}'", hint=_nearest(model_type, known))
    package = mobius.build(
        str(folder),
        dtype=dtype,
        execution_provider=provider,
        load_weights=False,
        trust_remote_code=trust_remote_code,
    )
    return package, mobius.registry.get(registered[0])(package.config)


def _nearest(model_type: str, known: list[str]) -> str:
    hint = did_you_mean(model_type, known)
    return (
        hint if hint.startswith("did") else f"{len(known)} architectures are known, such as llama, qwen3, phi3, gemma3"
    )


def _exact_attention() -> list[Any]:
    """mobius' fusion into ``GroupQueryAttention``, where that is the same function.

    mobius 0.1 drops the mask (a sliding window, T5's relative positions) and gives all layers the rotary cache of the
    first (Gemma 3 has two). Here a window becomes ``local_window_size``, each layer keeps its cache, and an attention
    whose mask says more stays as it is.
    """
    from mobius.rewrite_rules import _group_query_attention as fusion

    class Exact:
        def check(self, context: Any, *, attn_out: Any, attention_bias: Any, **values: Any) -> Any:
            result = super().check(context, attn_out=attn_out, attention_bias=attention_bias, **values)  # type: ignore[misc]
            if result and _window(attn_out.producer(), attention_bias) is None:
                return result.fail("the mask says more than a window")
            return result

        def rewrite(self, op: Any, *, attn_out: Any, attention_bias: Any, **values: Any) -> Any:
            self._cos_cache = self._sin_cache = None
            outputs = super().rewrite(op, attn_out=attn_out, attention_bias=attention_bias, **values)  # type: ignore[misc]
            window = _window(attn_out.producer(), attention_bias)
            outputs[0].producer().attributes.add(ir.AttrInt64("local_window_size", window))
            return outputs

    rules = (fusion.RotaryAttentionToGQA, fusion.AttentionToGQA)
    classes: list[Any] = [type(f"Exact{rule.__name__}", (Exact, rule), {}) for rule in rules]
    return [rule.rule() for rule in classes]


def _window(attention: Any, mask: Any) -> int | None:
    """How far back a causal mask lets a position see, -1 for all the way; None for a mask that says anything else."""
    windows, pending, seen = [], [mask], set()
    causal = attention.attributes.get_int("is_causal", 0) == 1
    while pending:
        value = pending.pop()
        if value is None or value in seen or value.name == "attention_mask" or ir.convenience.get_const_tensor(value):
            continue
        seen.add(value)
        node = value.producer()
        if node is None or node.op_type not in _MASK_OPS:
            return None
        causal = causal or node.op_type == "GreaterOrEqual"
        if node.op_type == "Less":
            limit = ir.convenience.get_const_tensor(node.inputs[1])
            if limit is None:
                return None
            windows.append(int(limit.numpy().item()))
        pending.extend(node.inputs if node.op_type != "Shape" else ())
    return min(windows, default=-1) if causal else None


def _require_head(graph: Any, hf_config: dict[str, Any]) -> None:
    """Refuse a classifier whose graph ends in hidden states, before it passes for the model that was asked for."""
    architecture = (hf_config.get("architectures") or [""])[0]
    headless = all(output.name != "logits" for output in graph.outputs)
    if headless and architecture.endswith(_TASK_HEADS):
        raise ColdpressError(
            f"{architecture}: only the part of this model without its head can be captured",
            hint="save that part alone (for instance AutoModel.from_pretrained(...).save_pretrained(...)) to press it",
        )


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

    def constant(self, numbers: list[int], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
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
    """State the outputs of cross attention as ``[batch, heads, encoder length, head size]``, as their past is stated."""
    past = {value.name.replace("past_key_values.", "present."): value.shape for value in graph.inputs}
    for output in graph.outputs:
        if ".cross." in output.name and output.name in past:
            output.shape = past[output.name]


class _Opaque:
    """Stands for a tensor while weights are renamed; touching it raises, which says that renaming is not all."""

    __slots__ = ("name", "shape")

    def __init__(self, name: str, shape: tuple[int, ...]):
        self.name, self.shape = name, shape


def sources_of(module: Any, checkpoint: Checkpoint, scratch: Path) -> dict[str, Span]:
    """The span of the checkpoint that fills each initializer.

    First try: mobius renames opaque stand-ins. If it needs real tensors (splitting a fused projection,
    transposing), it gets memory-mapped ones; a result that is a view of the map becomes a span with strides, a
    computed one is saved in ``scratch`` as ``computed.safetensors``.
    """
    spans = checkpoint.tensors
    try:
        renamed = module.preprocess_weights({name: _Opaque(name, span.shape) for name, span in spans.items()})
        return {name: spans[opaque.name] for name, opaque in renamed.items()}
    except (AttributeError, TypeError):
        return _traced(module, spans, scratch)


def _traced(module: Any, spans: Mapping[str, Span], scratch: Path) -> dict[str, Span]:
    deferred_torch.load()
    import torch

    homes: list[tuple[int, int, Span]] = []
    tensors = {}
    for name, span in spans.items():
        view = span.view()
        tensor = torch.from_numpy(view.view(np.int16) if span.dtype == "BF16" else view)
        tensors[name] = tensor.view(torch.bfloat16) if span.dtype == "BF16" else tensor
        homes.append((tensor.data_ptr(), tensor.data_ptr() + view.nbytes, span))
    homes.sort(key=lambda home: home[0])
    found: dict[str, Span] = {}
    computed: dict[str, Any] = {}
    for name, tensor in module.preprocess_weights(tensors).items():
        place = _locate(tensor, homes)
        if place is None:
            computed[name] = tensor
        else:
            found[name] = place
    return {**found, **_save_computed(computed, scratch)}


def _locate(tensor: Any, homes: list[tuple[int, int, Span]]) -> Span | None:
    """The span a tensor is a view of, under its home's name, or None when its memory is its own."""
    address = tensor.data_ptr()
    for start, stop, home in homes:
        if start <= address < stop:
            shape, strides = tuple(tensor.shape), tuple(tensor.stride())
            return Span(home.name, home.file, home.dtype, shape, home.offset + address - start, strides)
    return None


def _save_computed(tensors: dict[str, Any], scratch: Path) -> dict[str, Span]:
    if not tensors:
        return {}
    import torch
    from safetensors.torch import save_file

    from coldpress.networks.checkpoint import read_header

    file = scratch / "computed.safetensors"
    floats = {name: tensor.contiguous() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    if len(floats) != len(tensors):
        raise ColdpressError("this architecture's weights cannot be prepared", exit_code=WORK_FAILED)
    save_file({name: tensor.clone() for name, tensor in floats.items()}, file)
    return read_header(file)
