"""config.json, generation_config.json and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.folder import WEIGHTS, edit, set_config


def config_key_dropped(folder: Path, random: Random) -> None:
    edit(folder / "config.json", lambda config: config.pop(random.choice(sorted(config))))


def head_counts(folder: Path, random: Random) -> None:
    set_config(
        folder,
        **{random.choice(["num_attention_heads", "num_key_value_heads", "n_head"]): random.choice([1, 2, 3, 4, 8])},
    )


def head_size(folder: Path, random: Random) -> None:
    set_config(folder, head_dim=random.choice([8, 16, 32, None]))


def number_of_layers(folder: Path, random: Random) -> None:
    set_config(folder, **{random.choice(["num_hidden_layers", "n_layer"]): random.choice([1, 2, 3])})


def rope(folder: Path, random: Random) -> None:
    settings: list[dict[str, Any]] = [
        {"rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 32,
            }
        },
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"rope_type": "no_such", "factor": 8.0}},
        {"partial_rotary_factor": 0.5},
        {"max_position_embeddings": 64},
        {"position_embedding_type": "relative_key"},
    ]
    set_config(folder, **random.choice(settings))


def epsilon(folder: Path, random: Random) -> None:
    value = random.choice([1e-3, 1e-1, 1e-12, "1e-5"])
    set_config(folder, rms_norm_eps=value, layer_norm_epsilon=value)


def activation(folder: Path, random: Random) -> None:
    value = random.choice(["gelu", "relu", "gelu_pytorch_tanh", "relu2", "silu", "quick_gelu", "no_such"])
    set_config(folder, hidden_act=value, activation_function=value, hidden_activation=value)


def ties(folder: Path, random: Random) -> None:
    edit(
        folder / "config.json", lambda config: config.update(tie_word_embeddings=not config.get("tie_word_embeddings"))
    )


def vocabulary_size(folder: Path, random: Random) -> None:
    edit(
        folder / "config.json",
        lambda config: config.update(vocab_size=config["vocab_size"] + random.choice([-64, -1, 1, 64])),
    )


def windows(folder: Path, random: Random) -> None:
    settings: list[dict[str, Any]] = [
        {"sliding_window": 4},
        {"sliding_window": None},
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 5},
        {"layer_types": ["sliding_attention"], "sliding_window": 5},
    ]
    set_config(folder, **random.choice(settings))


def numbers_of_attention(folder: Path, random: Random) -> None:
    settings: list[dict[str, Any]] = [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"query_pre_attn_scalar": 64},
        {"attn_logit_softcapping": 0.7},
        {"final_logit_softcapping": 0.7},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"attention_dropout": 0.5},
        {"use_cache": False},
        {"logit_scale": 0.3},
        {"pretraining_tp": 2},
    ]
    set_config(folder, **random.choice(settings))


def experts(folder: Path, random: Random) -> None:
    settings: list[dict[str, Any]] = [
        {"num_experts_per_tok": 1},
        {"num_experts_per_tok": 4},
        {"num_experts": 2, "num_local_experts": 2},
        {"norm_topk_prob": True},
        {"mlp_only_layers": [1]},
        {"decoder_sparse_step": 2},
    ]
    set_config(folder, **random.choice(settings))


def type_in_the_config(folder: Path, random: Random) -> None:
    key = random.choice(["dtype", "torch_dtype"])
    set_config(folder, **{key: random.choice(["bfloat16", "float16", "float64", "int8", None])})


def architecture(folder: Path, random: Random) -> None:
    settings: list[dict[str, Any]] = [
        {"architectures": None},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["NoSuchForCausalLM"]},
        {"model_type": "mistral"},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        {"model_type": "no_such"},
    ]
    set_config(folder, **random.choice(settings))


def quantization_config(folder: Path, random: Random) -> None:
    settings: list[Any] = [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "fp8"},
        {"quant_method": "no_such"},
        {},
        None,
    ]
    set_config(folder, quantization_config=random.choice(settings))


def config_with_a_wrong_type(folder: Path, random: Random) -> None:
    content = json.loads((folder / "config.json").read_text())
    key = random.choice(sorted(key for key, value in content.items() if isinstance(value, int | float)))
    set_config(folder, **{key: random.choice(["64", None, -1, 0, [1], 1e30])})


def text_files_damaged(folder: Path, random: Random) -> None:
    file = random.choice(sorted(folder.glob("*.json")))
    data = file.read_bytes()
    file.write_bytes(
        random.choice([b"\xef\xbb\xbf" + data, data[: len(data) // 2], b"", b"[]", data.decode().encode("utf-16")])
    )


def file_missing(folder: Path, random: Random) -> None:
    random.choice(sorted(file for file in folder.iterdir() if file.name != WEIGHTS)).unlink()


def generation_config(folder: Path, random: Random) -> None:
    settings: list[Any] = [
        {"eos_token_id": [1, 2, 3]},
        {"eos_token_id": None},
        {"bos_token_id": 5, "do_sample": True},
        [],
        {"top_p": "x"},
    ]
    (folder / "generation_config.json").write_text(json.dumps(random.choice(settings)))
