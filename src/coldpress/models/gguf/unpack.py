"""Turning a GGUF file into a Hugging Face folder, tensor by tensor.

What llama.cpp's converter changed is undone: names; the row order of query and key projections (it pairs neighbouring
rows for the rotation where transformers pairs halves); Gemma's norms, which it stores as ``1 + weight``. Tensors of
float16 and bfloat16 keep their format, everything else becomes float32, so no value is rounded.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.models.gguf.file import GgufFile, Tensor
from coldpress.models.gguf.tokenizer import write_tokenizer

Progress = Callable[[str, float, float], None]

_CHUNK_VALUES = 1 << 22  # 16 MiB of float32
_KEPT = {"F16": "F16", "BF16": "BF16"}  # GGUF format -> safetensors dtype of tensors that are copied as they are

_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # part of the config
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA = {**_LAYER, **_POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}

_CONFIG = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}


_DEFAULT_THETA = 10000.0
# llama.cpp stores what Llama 3's scaling does to each frequency, not its parameters; every release used these
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "attn_factor": "attention_factor"}


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one architecture in GGUF files.

    ``layer``: tensor names in a block -> module names. ``keys``: further metadata -> config keys. ``fixed``: config
    values no file states. ``paired_rows``: whether query and key rows were reordered. ``norms_plus_one``: whether
    norms were stored as ``1 + weight``. ``full_every``: every n-th layer attends to everything, the others to a
    window. ``wide_scale_layers``: the one size (by its layer count) whose attention is scaled by hidden size / heads
    instead of the head size. ``unlike``: metadata that marks another architecture under the same name.
    """

    model_type: str
    causal_lm: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    paired_rows: bool = False
    norms_plus_one: bool = False
    full_every: int = 0
    wide_scale_layers: int = 0
    unlike: Mapping[str, str] = field(default_factory=dict)


_GEMMA_FIXED = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", paired_rows=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", fixed={"hidden_act": "silu", "use_sliding_window": False}),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        {**_LAYER, **_HEAD_NORMS},
        fixed={"hidden_act": "silu", "use_sliding_window": False},
    ),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        fixed={"hidden_act": "silu", "no_rope_layer_interval": 4, "use_sliding_window": False},
        paired_rows=True,
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        keys={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        paired_rows=True,
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        {name: module for name, module in _LAYER.items() if "norm" not in name} | _HEAD_NORMS | _POST_NORMS,
        unlike={"attention.sliding_window": "OLMo 3"},
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        {
            "attention.sliding_window": "sliding_window",
            "rope.scaling.original_context_length": "original_max_position_embeddings",
        },
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA,
        {
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        {**_GEMMA_FIXED, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        norms_plus_one=True,
        full_every=2,
        wide_scale_layers=46,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**_GEMMA, **_HEAD_NORMS},
        {"attention.sliding_window": "sliding_window"},
        {**_GEMMA_FIXED, "attn_logit_softcapping": None, "final_logit_softcapping": None},
        norms_plus_one=True,
        full_every=6,
        wide_scale_layers=62,
    ),
}


def unpack(file: GgufFile, folder: Path, progress: Progress = lambda what, done, total: None) -> list[str]:
    """Write the model in a GGUF file as a Hugging Face folder; returns what one must know of its tokenizer.

    Memory use is bounded by 4 million values, not by the largest tensor.
    """
    names = tensor_names(file)
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(file)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _token_ids(file))
    remarks = write_tokenizer(file, folder)
    _write_weights(file, names, folder / "model.safetensors", progress)
    return remarks


def architecture_of(file: GgufFile) -> Architecture:
    """The known architecture of a file; ColdpressError when it is not known."""
    if file.architecture not in ARCHITECTURES:
        raise ColdpressError(
            f"{file.path}: the architecture '{file.architecture}' cannot be unpacked from GGUF",
            hint=did_you_mean(file.architecture, ARCHITECTURES),
        )
    architecture = ARCHITECTURES[file.architecture]
    for key, other in architecture.unlike.items():
        if file.value(key) is not None:
            raise ColdpressError(f"{file.path} holds {other}, which cannot be unpacked from GGUF")
    return architecture


def tensor_names(file: GgufFile) -> dict[str, str]:
    """The name in transformers of every weight in a file, in the file's order.

    ColdpressError when a tensor has no place in the architecture, or when one is missing.
    """
    architecture = architecture_of(file)
    known = {f"{name}.weight": f"{module}.weight" for name, module in _ENDS.items()}
    for block in range(int(_required(file, "block_count"))):
        for name, module in architecture.layer.items():
            for suffix in ("weight", "bias"):
                known[f"blk.{block}.{name}.{suffix}"] = f"model.layers.{block}.{module}.{suffix}"
    present = [name for name in file.tensors if name not in _ROTARY]
    if strange := [name for name in present if name not in known]:
        raise ColdpressError(
            f"{file.path}: tensor '{strange[0]}' has no place in {architecture.causal_lm} "
            f"({len(strange)} such tensors); mixtures of experts are not supported"
        )
    needed = [name for name in known if name.endswith(".weight") and name != "output.weight"]
    if missing := [name for name in needed if name not in file.tensors]:
        raise ColdpressError(f"{file.path}: tensor '{missing[0]}' is missing ({len(missing)} such tensors)")
    return {name: known[name] for name in present}


def model_config(file: GgufFile) -> dict[str, Any]:
    """The contents of ``config.json``; rotary settings in the shape of transformers 5 and in the older one."""
    architecture = architecture_of(file)
    config: dict[str, Any] = {
        "architectures": [architecture.causal_lm],
        "model_type": architecture.model_type,
        "dtype": "float32",
        "torch_dtype": "float32",
        **architecture.fixed,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }
    config |= {name: _required(file, key) for key, name in _CONFIG.items() if key != "attention.head_count_kv"}
    config["num_key_value_heads"] = _number(file, "attention.head_count_kv") or config["num_attention_heads"]
    config |= {name: file.value(key) for key, name in architecture.keys.items() if file.value(key) is not None}
    config["head_dim"] = head_size(file)
    config |= _token_ids(file)
    if architecture.full_every:
        config |= _windowed(architecture, config)
    return config | _rope_config(file, config["head_dim"], windowed=file.architecture == "gemma3")


def head_size(file: GgufFile) -> int:
    """The width of one attention head, read off the projections (files state it in several ways or not at all)."""
    heads = int(_required(file, "attention.head_count"))
    fused = file.tensors.get("blk.0.attn_qkv.weight")
    if fused is not None:
        key_value_heads = int(_number(file, "attention.head_count_kv") or heads)
        return fused.shape[0] // (heads + 2 * key_value_heads)
    return file.tensors["blk.0.attn_q.weight"].shape[0] // heads


def _windowed(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers attend to a window, and the scale of the attention scores."""
    layers, every = config["num_hidden_layers"], architecture.full_every
    kinds = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]
    wide = layers == architecture.wide_scale_layers
    scalar = config["hidden_size"] // config["num_attention_heads"] if wide else config["head_dim"]
    return {"layer_types": kinds, "sliding_window_pattern": every, "query_pre_attn_scalar": scalar}


def _token_ids(file: GgufFile) -> dict[str, Any]:
    keys = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    ids = {name: file.metadata.get(f"tokenizer.ggml.{key}") for name, key in keys.items()}
    end_of_turn = file.metadata.get("tokenizer.ggml.eot_token_id")
    if end_of_turn is not None and end_of_turn != ids["eos_token_id"]:
        ids["eos_token_id"] = [token for token in (ids["eos_token_id"], end_of_turn) if token is not None]
    return {name: value for name, value in ids.items() if value is not None}


def _number(file: GgufFile, key: str) -> Any:
    """A metadata number; of one that stands there for each layer, the common value."""
    value = file.value(key)
    if not isinstance(value, np.ndarray):
        return value
    if len(set(value.tolist())) != 1:
        raise ColdpressError(f"{file.path}: {file.architecture}.{key} differs from layer to layer, not supported")
    return value[0].item()


def _required(file: GgufFile, key: str) -> Any:
    value = _number(file, key)
    if value is None:
        raise ColdpressError(f"{file.path} lacks the metadata {file.architecture}.{key}")
    return value


def _rope_config(file: GgufFile, head_dim: int, *, windowed: bool = False) -> dict[str, Any]:
    """The rotary part of ``config.json``.

    ``windowed``: layers that attend to a window have their own base and are never scaled (Gemma 3).
    """
    theta = float(file.value("rope.freq_base", _DEFAULT_THETA))
    scaling = _scaling(file, head_dim, theta)
    rotated = int(file.value("rope.dimension_count", head_dim))
    partial = {"partial_rotary_factor": rotated / head_dim} if rotated != head_dim else {}
    rope = {"rope_theta": theta, **(scaling or {"rope_type": "default"}), **partial}
    legacy = {"rope_theta": theta, **partial, **({"rope_scaling": scaling} if scaling else {})}
    if not windowed:
        return {"rope_parameters": rope, **legacy}
    local = float(file.value("rope.freq_base_swa", _DEFAULT_THETA))
    both = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return {"rope_parameters": both, **legacy, "rope_local_base_freq": local}


def _scaling(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file, head_dim, theta)
    kind = file.value("rope.scaling.type", "none")
    original = file.value("rope.scaling.original_context_length")
    if "rope_factors_long.weight" in file.tensors:
        names = ("short", "long")
        factors = {f"{name}_factor": _vector(file, f"rope_factors_{name}.weight").tolist() for name in names}
        # transformers derives the attention factor from the two context lengths, as the converter did
        return {"rope_type": "longrope", **factors, "original_max_position_embeddings": original}
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(file.value("rope.scaling.factor", 1.0))}
    if kind == "linear":
        return scaling
    if kind == "yarn":
        given = {name: file.value(f"rope.scaling.{key}") for key, name in _YARN.items()}
        scaling |= {"original_max_position_embeddings": original, **given}
        return {name: value for name, value in scaling.items() if value is not None}
    raise ColdpressError(f"{file.path}: rotary scaling '{kind}' is not supported", hint="known: linear, yarn, longrope")


def _llama3_scaling(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any]:
    """Recover Llama 3's scaling from the factor of each frequency, and check that it gives those factors."""
    stored = _vector(file, "rope_freqs.weight")
    scaling: dict[str, Any] = {"rope_type": "llama3", "factor": round(float(stored.max()), 4), **_LLAMA3}
    wave_length = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] / wave_length
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise ColdpressError(f"{file.path}: the rotary factors are not those of Llama 3, not supported")
    return scaling


def _vector(file: GgufFile, name: str) -> np.ndarray:
    return file.values(file.tensors[name]).ravel()


def _write_weights(file: GgufFile, names: Mapping[str, str], path: Path, progress: Progress) -> None:
    """Write a safetensors file: the header first, then one tensor after the other in chunks of rows."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, target in names.items():
        tensor = file.tensors[name]
        dtype = _stored_as(file, tensor)
        start, end = end, end + int(np.prod(tensor.shape)) * (4 if dtype == "F32" else 2)
        header[target] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for done, name in enumerate(names):
            progress("unpacking GGUF", done, len(names))
            for chunk in _chunks(file, file.tensors[name]):
                stream.write(np.ascontiguousarray(chunk).data)
    progress("unpacking GGUF", len(names), len(names))


def _stored_as(file: GgufFile, tensor: Tensor) -> str:
    return "F32" if _is_shifted(file, tensor) else _KEPT.get(tensor.kind, "F32")


def _is_shifted(file: GgufFile, tensor: Tensor) -> bool:
    return architecture_of(file).norms_plus_one and tensor.name.endswith("norm.weight")


def _chunks(file: GgufFile, tensor: Tensor) -> Iterator[np.ndarray]:
    """The rows of a tensor as transformers has them, a few million values at a time, in whole heads."""
    paired = architecture_of(file).paired_rows and tensor.name.split(".")[-2] in ("attn_q", "attn_k")
    head = head_size(file) if paired else 1
    columns = max(1, int(np.prod(tensor.shape)) // tensor.rows)
    step = max(1, _CHUNK_VALUES // columns // head) * head
    read = file.raw if _stored_as(file, tensor) != "F32" else file.values
    for start in range(0, tensor.rows, step):
        rows = read(tensor, start, start + step)
        if head > 1:
            rows = rows.reshape(-1, head // 2, 2, rows.shape[-1]).swapaxes(1, 2)
        yield rows - np.float32(1) if _is_shifted(file, tensor) else rows


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
