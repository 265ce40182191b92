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

from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean
from coldpress.graphs import deferred_torch
from coldpress.networks.checkpoint import Checkpoint, Span

_SUPPORTED_COMPONENTS = ({"model"}, {"encoder", "decoder"})
#: operators that a mask is built of when it only says: not the future, not the padding, not beyond a window
_MASK_OPS = frozenset(
    ["And", "Cast", "Concat", "Constant", "CumSum", "Expand", "GreaterOrEqual", "Identity", "Less", "Shape", "Slice", "Sub", "Unsqueeze", "Where"]
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
        _follow_configuration(component.graph, known)
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


def _build(folder: Path, hf_config: dict[str, Any], provider: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
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
    return hint if hint.startswith("did") else f"{len(known)} architectures are known, such as llama, qwen3, phi3, gemma3"


def _exact_attention() -> list[Any]:
    """mobius' fusion into ``GroupQueryAttention``, where that is the same function.

    mobius 0.1 drops the mask (a sliding window, T5's relative positions) and gives all layers the rotary cache of the
    first (Gemma 3 has two). Here a window becomes ``local_window_size``, each layer keeps its cache, and an attention
    whose mask says more stays as it is.
    """
    import onnx_ir as ir
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
    return [type(f"Exact{rule.__name__}", (Exact, rule), {}).rule() for rule in rules]


def _window(attention: Any, mask: Any) -> int | None:
    """How far back a causal mask lets a position see, -1 for all the way; None for a mask that says anything else."""
    import onnx_ir as ir

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


def _follow_configuration(graph: Any, config: Any) -> None:
    """Give each ``GroupQueryAttention`` the scale and the window that transformers' configuration says its layer has.

    mobius 0.1 swaps Gemma 2's layers, takes Gemma 3's scale from the head size, and leaves the windows out where only
    some layers of a plain decoder have one.
    """
    import onnx_ir as ir

    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    scalar = getattr(config, "query_pre_attn_scalar", None)
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        if scalar:
            node.attributes.add(ir.AttrFloat32("scale", scalar**-0.5))
        if kinds and window:
            layer = int(node.inputs[3].name.split(".")[1])
            size = int(window) if kinds[layer] == "sliding_attention" else -1
            node.attributes.add(ir.AttrInt64("local_window_size", size))


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
        span = _locate(tensor, homes)
        if span is None:
            computed[name] = tensor
        else:
            found[name] = span
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
