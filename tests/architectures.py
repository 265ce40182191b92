"""Tiny checkpoints of every architecture, with random weights, and the transformers models they were saved from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_VOCABULARY = 320
_CAUSAL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {**_CAUSAL, "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 24}
_PLAIN = {name: _CAUSAL[name] for name in _CAUSAL if name != "num_key_value_heads" and not name.endswith("token_id")}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5],
}

#: name -> (transformers class, configuration class, its settings)
_RECIPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_CAUSAL, "tie_word_embeddings": False}),
    "smollm2": ("LlamaForCausalLM", "LlamaConfig", {**_CAUSAL, "tie_word_embeddings": True}),
    "llama_narrow": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_CAUSAL, "hidden_size": 80, "intermediate_size": 104, "head_dim": 16, "tie_word_embeddings": False},
    ),
    "llama_padded": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_CAUSAL, "hidden_size": 72, "head_dim": 16, "tie_word_embeddings": True},
    ),
    "llama_scaled": ("LlamaForCausalLM", "LlamaConfig", {**_CAUSAL, "rope_parameters": _LLAMA3_ROPE}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**_CAUSAL, "num_hidden_layers": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _CAUSAL),
    "qwen2_windows": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**_CAUSAL, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_CAUSAL, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_CAUSAL, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "qwen3_moe_mixed": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            **_CAUSAL,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [0],
        },
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **_CAUSAL,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_CAUSAL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", {**_CAUSAL, "num_experts": 4, "num_experts_per_tok": 2}),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        {
            **_CAUSAL,
            "head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        {**_CAUSAL, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "granitemoe": (
        "GraniteMoeForCausalLM",
        "GraniteMoeConfig",
        {**_CAUSAL, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_CAUSAL, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": None},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _CAUSAL),
    "phi3_partial": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {**_CAUSAL, "hidden_size": 128, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
    ),
    "phi3_long": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {**_CAUSAL, "original_max_position_embeddings": 64, "rope_parameters": _LONG_ROPE},
    ),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GEMMA, "final_logit_softcapping": 1.5}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_CAUSAL, "sliding_window": 4}),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            **_CAUSAL,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _CAUSAL),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": _VOCABULARY},
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": _VOCABULARY,
            "max_position_embeddings": 128,
        },
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**_PLAIN, "num_attention_heads": 2, "rotary_pct": 0.5}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "vocab_size": _VOCABULARY,
            "max_position_embeddings": 128,
        },
    ),
    "llama_biases": ("LlamaForCausalLM", "LlamaConfig", {**_CAUSAL, "attention_bias": True, "mlp_bias": True}),
    "llama_heads_of_40": ("LlamaForCausalLM", "LlamaConfig", {**_CAUSAL, "head_dim": 40}),
    "llama_heads_of_4": ("LlamaForCausalLM", "LlamaConfig", {**_CAUSAL, "hidden_size": 16, "head_dim": 4}),
    "gptj": (
        "GPTJForCausalLM",
        "GPTJConfig",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8, "vocab_size": _VOCABULARY},
    ),
    "cohere": ("CohereForCausalLM", "CohereConfig", _CAUSAL),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", {**_CAUSAL, "head_dim": 16, "attention_bias": True}),
    "bert": ("BertModel", "BertConfig", _PLAIN),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {
            "dim": 64,
            "hidden_dim": 96,
            "n_layers": 2,
            "n_heads": 4,
            "vocab_size": _VOCABULARY,
            "max_position_embeddings": 128,
        },
    ),
    "vit": (
        "ViTModel",
        "ViTConfig",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "vocab_size": _VOCABULARY,
        },
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "vocab_size": _VOCABULARY,
            "max_source_positions": 50,
            "max_target_positions": 32,
            "num_mel_bins": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": [],
            "begin_suppress_tokens": [],
        },
    ),
}


@dataclass(frozen=True)
class Tiny:
    """A checkpoint folder and the transformers model, in float32 and evaluation mode, that it holds."""

    name: str
    folder: Path
    model: Any


def checkpoint(name: str, folder: Path, **changes: Any) -> Tiny:
    """The tiny checkpoint of an architecture by name, written to ``folder``; ``changes`` of its settings."""
    import transformers

    class_name, config_name, settings = _RECIPES[name]
    model = getattr(transformers, class_name)(getattr(transformers, config_name)(**{**settings, **changes})).eval()
    _randomise(model)
    model.save_pretrained(folder)
    return Tiny(name, folder, model)


def _randomise(model: Any) -> None:
    """Weights that keep a signal's size through a layer; norms and biases away from the ones and zeros they start
    as."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data += 0.2 * noise
        else:
            parameter.data = noise / parameter[0].numel() ** 0.5
