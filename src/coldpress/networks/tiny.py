"""The same architecture at a tiny size: a configuration made small, and a random model of it.

Every setting that says what is computed stays as it is (activation, biases, norms, how positions are rotated, which
layers are of which kind); only sizes become small, in the proportions that matter: whether heads share keys and values,
how large a head is, how far a context reaches beyond the one that it was trained on.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError, raised_as

VOCABULARY, POSITIONS, WINDOW = 320, 128, 8
#: of a text that has been trained on, where a configuration tells it from the longest one
_TRAINED_POSITIONS, _MOST_POSITIONS = 32, 2048
_LARGEST_HEAD = 256

#: names of sizes -> the tiny size; the first pattern that matches a whole name counts
_SIZES: tuple[tuple[str, int], ...] = (
    (r"max_window_layers|num_dense_layers|first_k_dense_replace|.*_group|topk_group|n_groups|.*_n_?groups", 1),
    (r"moe_k|(moe_)?top_?k|moe_topk|num_experts_per_tok(en)?", 2),
    (r"(num|n_routed|num_local|moe_num|zero)_expert(s|_num)?", 4),
    (r"(moe|expert|shared_expert)\w*_size", 32),
    (r".*vocab_size\w*", VOCABULARY),
    (
        r"max_(sequence|seq_len|(source|target)_positions|((en|de)coder_)?position_embeddings)|max_target_positions"
        r"|n_positions|n_ctx|max_seq_len|seq_length|context_length|model_max_length",
        POSITIONS,
    ),
    (r"sliding_window(_size)?|(attention_)?window_size|local_attention|attention_chunk_size|attention_window", WINDOW),
    (
        r"kv_lora_rank|qk_nope_head_dim|v_head_dim|\w*_state(_size)?|state_size|linear_\w+_head_dim|index_head_dim|\w+_rank",
        16,
    ),
    (r"q_lora_rank|qk_head_dim", 24),
    (r"qk_rope_head_dim|\w*chunk_size|index_topk|block_size|\w*mamba_n(um)?_heads", 8),
    (
        r"hidden_size_per_layer_input|mamba_d_head|mamba_head_?dim|d_kv|dim_head|d_head|attention_head_size"
        r"|kv_channels|swa_head_dim",
        16,
    ),
    (r"linear_num_(key|value)_heads", 2),
    (r"relative_attention_max_distance", 20),
    (r"\w*intermediate_size\w*|\w*ffn\w*|d_?ff|n_inner|feed_forward_size|d_inner|dim_ff|mlp_hidden_size", 96),
)
_HEADS = re.compile(r"(num_|encoder_|decoder_|num_encoder_|num_decoder_|swa_num_)?(attention_)?(n_?)?heads?")
_SHARED = re.compile(r"(swa_)?num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|multi_query_group_num")
_WIDTHS = re.compile(
    r"(n_embd|d_model|hidden_size|emb_dim|embedding_dim|lru_width|((in|out)put_)?embedding_size|word_embed_proj_dim"
    r"|(pronunciation|shape)_embed_dim|cross_attention_hidden_size|dim)"
)
_LAYERS = re.compile(
    r"(num_hidden|num_decoder|num_encoder|encoder|decoder|num|n|speech_encoder|t2u_encoder|t2u_decoder)_layers?"
)
_NESTED = ("model_type", "hidden_size", "d_model")
_POSITION_NAMES = ("max_position_embeddings", "original_max_position_embeddings")


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, as in config.json, made small. What it nests (``text_config``, ...) is made small as well."""
    layers = _layers(config)
    size = _head_size(config)
    positions = _positions(config)
    made: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            made[name] = shrunk(value) if any(key in value for key in _NESTED) else _scaled(value, positions)
        elif isinstance(value, list):
            made[name] = _picked(name, value, config, layers)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            made[name] = _size(name, value, config, layers, size)
        else:
            made[name] = value
    if "max_position_embeddings" in made:
        made["max_position_embeddings"] = positions[1] if positions else POSITIONS
    if positions and made.get("original_max_position_embeddings"):
        made["original_max_position_embeddings"] = positions[0]
    return made


def _size(name: str, value: int, config: Mapping[str, Any], layers: list[int], head: int) -> int:
    if _SHARED.fullmatch(name):
        heads = next((config[other] for other in config if _HEADS.fullmatch(other) and config[other]), value)
        return 4 if value == heads else 1 if value == 1 else 2
    if _HEADS.fullmatch(name):
        return 4
    if _LAYERS.fullmatch(name):
        return len(layers)
    if _WIDTHS.fullmatch(name):
        return 4 * head
    if name == "head_dim":
        return min(value, _LARGEST_HEAD)
    if name == "rotary_dim":
        return max(2, value * head // _whole_head(config) // 2 * 2)
    if name.endswith(("token_id", "_index")):
        return min(value, 2)
    fitting = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), value)
    return min(value, fitting)


def _whole_head(config: Mapping[str, Any]) -> int:
    """The size of a head of the whole model."""
    own = config.get("head_dim")
    if isinstance(own, int) and own:
        return own
    width = next((config[name] for name in ("hidden_size", "n_embd", "d_model") if config.get(name)), 64)
    heads = next((config[name] for name in config if _HEADS.fullmatch(name) and isinstance(config[name], int)), 4)
    return max(1, width // max(1, heads))


def _head_size(config: Mapping[str, Any]) -> int:
    """The size that a head keeps, and so a quarter of the width."""
    return min(_whole_head(config), _LARGEST_HEAD)


def _layers(config: Mapping[str, Any]) -> list[int]:
    """The numbers of the layers that are kept: one or two of each kind, in their order."""
    count = next((config[name] for name in config if _LAYERS.fullmatch(name) and isinstance(config[name], int)), 2)
    lists = [
        v
        for v in config.values()
        if isinstance(v, list) and len(v) == count and all(not isinstance(x, list | dict) for x in v)
    ]
    kinds = list(zip(*lists, strict=True)) if lists else []
    first = list(dict.fromkeys(kinds.index(kind) for kind in kinds))[:6]
    period = max(
        [
            2,
            *(
                v
                for k, v in config.items()
                if re.search(r"pattern|interval|period", k) and isinstance(v, int) and not isinstance(v, bool)
            ),
        ]
    )
    if len(first) > 1:
        return first
    return list(range(min(count, period if period <= 8 else 2)))


def _picked(name: str, values: list[Any], config: Mapping[str, Any], layers: list[int]) -> list[Any]:
    """Of a list with an entry for each layer those that are kept; of special tokens one of the small vocabulary."""
    if name.endswith("token_id"):
        return [min(value, 2) for value in values]
    count = next((config[other] for other in config if _LAYERS.fullmatch(other) and isinstance(config[other], int)), 0)
    if len(values) == count and name != "architectures":
        kept = [values[layer] for layer in layers]
        return [min(value, 96) if isinstance(value, int) and value > 512 else value for value in kept]
    return values


def _positions(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The tiny (trained, longest) number of positions, in the proportion of the whole model's; None where only one is
    told."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [scaling, *(value for value in scaling.values() if isinstance(value, dict))]
    trained = next(
        (
            part["original_max_position_embeddings"]
            for part in [config, *nested]
            if part.get("original_max_position_embeddings")
        ),
        None,
    )
    longest = config.get("max_position_embeddings")
    if not trained or not longest:
        return None
    return _TRAINED_POSITIONS, max(
        _TRAINED_POSITIONS, min(_MOST_POSITIONS, int(_TRAINED_POSITIONS * longest / trained))
    )


def _scaled(value: dict[str, Any], positions: tuple[int, int] | None) -> dict[str, Any]:
    """What says how positions are rotated, with the tiny number of positions."""
    made = {name: _scaled(part, positions) if isinstance(part, dict) else part for name, part in value.items()}
    if positions and "original_max_position_embeddings" in made:
        made["original_max_position_embeddings"] = positions[0]
    return made


def tiny_model(folder: Path, output: Path, *, trust_remote_code: bool = False) -> Any:
    """A random model, in float32, of the architecture that ``folder`` says, tiny; saved to ``output`` as a folder of
    its own.

    ColdpressError where transformers cannot make one.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    what = "transformers cannot make a tiny model of this configuration"
    with raised_as(lambda error: ColdpressError(f"{what}: {error}")):
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        class_name = (config.architectures or [""])[0]
        small = type(config).from_dict(
            {name: value for name, value in shrunk(config.to_dict()).items() if name not in _NOT_OF_THE_NETWORK}
        )
        model = of_class(small, class_name, trust_remote_code=trust_remote_code)
    randomise(model)
    model.save_pretrained(output)
    for file in folder.glob("*.py"):
        shutil.copyfile(file, output / file.name)
    return model


_NOT_OF_THE_NETWORK = ("quantization_config", "transformers_version", "dtype", "torch_dtype")


def of_class(config: Any, class_name: str, *, trust_remote_code: bool = False) -> Any:
    """A model of a configuration, in evaluation mode: of that class of transformers, or what its AutoModel makes."""
    import transformers

    named = getattr(transformers, class_name, None)
    if named is not None:
        return named(config).eval()
    auto = transformers.AutoModelForCausalLM
    return auto.from_config(config, trust_remote_code=trust_remote_code).eval()


def randomise(model: Any) -> None:
    """Weights that keep a signal's size through a layer; norms and biases away from the ones and zeros they start
    as."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        inputs = parameter[0].numel() if parameter.ndim > 1 else 1
        if inputs == 1 or parameter.shape[0] == 1:
            parameter.data += 0.2 * noise
        else:
            parameter.data = noise / inputs**0.5
