"""Presses a tiny model of every class and setting and compares it with transformers: ``python docs/sweep.py [CLASS
...]``.

Writes ``src/coldpress/graphs/architectures.json``, which presses go by, and ``docs/architectures.md``. With classes,
only those are tried again; with ``--defaults``, those that are not in the table yet, without their settings.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("architectures.md")
TABLE = Path(__file__).parents[1] / "src/coldpress/graphs/architectures.json"

_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "quick_gelu")
_ACTIVATION_NAMES = ("hidden_act", "hidden_activation", "activation_function", "activation", "afn", "dense_act_fn")
#: settings with values that are worth trying, where a class has them
_VALUES: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None, 8),
    "head_dim": (4, 40, 80, 256),
    "partial_rotary_factor": (0.25, 0.5, 1.0),
    "rotary_pct": (0.25, 0.5, 1.0),
    "rotary_dim": (8, 16),
    "final_logit_softcapping": (None, 1.5),
    "attn_logit_softcapping": (None, 2.0),
    "clip_qkv": (None, 0.3),
    "logit_scale": (0.3, 1.0),
    "logits_scaling": (2.0,),
    "embedding_multiplier": (3.0,),
    "attention_multiplier": (0.3,),
    "residual_multiplier": (0.5,),
    "query_pre_attn_scalar": (24,),
    "num_kv_heads": (1, 2, 4),
    "n_inner": (48,),
    "layer_norm_epsilon": (1e-3,),
    "layer_norm_eps": (1e-3,),
    "rms_norm_eps": (1e-3,),
    "norm_eps": (1e-3,),
    "norm_epsilon": (1e-3,),
    "first_k_dense_replace": (0, 1),
    "mlp_only_layers": ([0],),
    "feed_forward_proj": ("relu", "gated-gelu"),
    "position_embedding_type": ("absolute", "relative_key"),
}
_ROTATIONS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn with its settings": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def main(classes: list[str]) -> None:
    """Sweep all classes, or some, and write the table and the page."""
    warnings.simplefilter("ignore")
    known = json.loads(TABLE.read_text(encoding="utf-8"))["classes"]
    only_defaults = "--defaults" in classes
    for model_type, name in all_classes():
        key = f"{model_type}/{name}"
        if key not in known if only_defaults else not classes or name in classes:
            known[key] = swept(model_type, name, only_defaults)
            print(key, _summary(known[key]), flush=True)
            _write(known)


def _write(classes: dict[str, Any]) -> None:
    """The table and the page; after each class, as a graph that ends the process would take all before it along."""
    table = {"mobius": version("mobius-onnx"), "transformers": version("transformers"), "classes": classes}
    written = json.dumps(table, indent=1, sort_keys=True) + "\n"
    TABLE.write_text(written, encoding="utf-8")
    PAGE.write_text(page(json.loads(written)), encoding="utf-8")


def all_classes() -> list[tuple[str, str]]:
    """(model type, class) of every decoder and encoder-decoder of transformers, and of the encoders that mobius knows."""
    import mobius
    from transformers.models.auto import modeling_auto as auto

    found = [
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items(),
        *auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items(),
    ]
    found += list(auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.items())
    encoding = ("feature-extraction", "image-classification")
    for model_type, names in auto.MODEL_MAPPING_NAMES.items():
        if model_type in mobius.registry and mobius.registry.get_task(model_type) in encoding:
            found += [(model_type, name) for name in ([names] if isinstance(names, str) else names)]
    return list(dict.fromkeys(found))


def swept(model_type: str, name: str, only_defaults: bool = False) -> dict[str, Any]:
    """What presses of a class: ``right``: setting -> kinds of its values; ``refused``: variant -> why; ``why`` if
    nothing does."""
    import mobius

    from coldpress.graphs.trust import settings_of

    known: dict[str, Any] = {"right": {}, "pressed": [], "refused": {}}
    if model_type not in mobius.registry:
        return {**known, "right": None, "why": "mobius does not know it"}
    try:
        base = _base(model_type, name)
    except Exception as error:  # transformers' own class does not accept its configuration at a tiny size
        return {**known, "right": None, "why": f"no tiny configuration of it can be made ({type(error).__name__})"}
    verdict, config = _tried(base, name)
    if not verdict.is_right:
        return {**known, "right": None, "why": verdict.why}
    right = {key: {kind} for key, kind in settings_of(config)}
    for title, changes in () if only_defaults else variants(base):
        verdict, config = _tried({**base, **changes}, name)
        if not verdict.is_right:
            known["refused"][title] = verdict.why
            continue
        known["pressed"].append(title)
        for key, kind in settings_of(config):
            right.setdefault(key, set()).add(kind)
    known["right"] = {key: sorted(kinds) for key, kinds in sorted(right.items())}
    return known


def _base(model_type: str, name: str) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from coldpress.networks.tiny import shrunk

    whole = CONFIG_MAPPING[model_type]().to_dict()
    if isinstance(whole.get("head_dim"), int) and whole["head_dim"] > 16:
        whole["hidden_size"] = 16 * whole.get("num_attention_heads", 4)
        whole["head_dim"] = 16
    small = shrunk({**_narrow(whole), **_PARTICULAR.get(name, {})})
    small.update({"model_type": model_type, "architectures": [name]})
    return small


#: what a class needs to be made at all, where the defaults of its configuration do not do
_PARTICULAR: dict[str, dict[str, Any]] = {
    "HunYuanDenseV1ForCausalLM": {"head_dim": 16},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 16},
    "MinistralForCausalLM": {"head_dim": 16},
    "NemotronForCausalLM": {"head_dim": 16},
    "Dots1ForCausalLM": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2},
    "XmodForCausalLM": {"default_language": "en_XX"},
    "GPTJForCausalLM": {"rotary_dim": 8},
    "CodeGenForCausalLM": {"rotary_dim": 8},
}


def _narrow(whole: dict[str, Any]) -> dict[str, Any]:
    """The configuration with heads of 16, which is quick; other sizes are variants."""
    heads = next(
        (
            whole[key]
            for key in ("num_attention_heads", "n_head", "n_heads", "num_heads")
            if isinstance(whole.get(key), int)
        ),
        None,
    )
    if heads is None or whole.get("head_dim"):
        return whole
    for key in ("hidden_size", "n_embd", "d_model"):
        if isinstance(whole.get(key), int):
            return {**whole, key: 16 * heads}
    return whole


def variants(base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(title, settings that change) of what is worth trying with a class, one at a time."""
    from coldpress.graphs.trust import _WITHOUT_EFFECT

    for key, value in base.items():
        if isinstance(value, bool) and not _WITHOUT_EFFECT.fullmatch(key):
            yield f"{key}: {json.dumps(not value)}", {key: not value}
    yield from _tied(base)
    for key in _ACTIVATION_NAMES:
        if isinstance(base.get(key), str):
            yield from ((f"{key}: {name}", {key: name}) for name in _ACTIVATIONS if name != base[key])
    for key, values in _VALUES.items():
        if key in base:
            yield from ((f"{key}: {json.dumps(value)}", {key: value}) for value in values if value != base[key])
    yield from _head_variants(base)
    yield from _rotation_variants(base)
    yield from _window_variants(base)


def _tied(base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "tie_word_embeddings" not in base:
        for is_tied in (True, False):
            yield f"tie_word_embeddings: {json.dumps(is_tied)}", {"tie_word_embeddings": is_tied}


def _head_variants(base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "num_key_value_heads" in base:
        for number, title in ((1, "one"), (2, "some"), (4, "all")):
            if number != base["num_key_value_heads"]:
                yield f"num_key_value_heads: {title}", {"num_key_value_heads": number}
    width = next((key for key in ("hidden_size", "n_embd", "d_model") if isinstance(base.get(key), int)), None)
    if width and not isinstance(base.get("head_dim"), int):
        for size in (4, 40, 80, 256):
            changes = {width: 4 * size}
            if isinstance(base.get("rotary_dim"), int):
                changes["rotary_dim"] = min(base["rotary_dim"], size)
            yield f"heads of {size}", changes


def _rotation_variants(base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    rotation = base.get("rope_parameters")
    if not isinstance(rotation, dict):
        return
    nested = any(isinstance(value, dict) for value in rotation.values())
    kept = {"max_position_embeddings": 128}
    for title, scaling in _ROTATIONS.items():
        if nested:
            whole = rotation.get("full_attention", {})
            changed = {**rotation, "full_attention": {**whole, **scaling}}
        else:
            changed = {**_without_scaling(rotation), **scaling}
        yield f"rope: {title}", {**kept, "rope_parameters": changed}
    if nested:
        return
    half = (base.get("head_dim") or 16) * rotation.get("partial_rotary_factor", 1.0) // 2
    factors = {
        "short_factor": [1.0 + n / 10 for n in range(int(half))],
        "long_factor": [2.0 + n / 2 for n in range(int(half))],
    }
    longest = {"rope_type": "longrope", "original_max_position_embeddings": 32, **factors}
    changes = {**kept, "rope_parameters": {**_without_scaling(rotation), **longest}}
    if "original_max_position_embeddings" in base:
        changes["original_max_position_embeddings"] = 32
    yield "rope: longrope", changes
    for part in (0.25, 0.5):
        yield f"rope: partial {part}", {"rope_parameters": {**rotation, "partial_rotary_factor": part}}
    yield "rope: theta 1000000", {"rope_parameters": {**rotation, "rope_theta": 1e6}}


def _without_scaling(rotation: dict[str, Any]) -> dict[str, Any]:
    return {key: rotation[key] for key in ("rope_theta", "partial_rotary_factor") if key in rotation}


def _window_variants(base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    kinds = base.get("layer_types")
    if not isinstance(kinds, list) or not set(kinds) <= {"full_attention", "sliding_attention"}:
        return
    for title, wanted in (
        ("full", ["full_attention"] * len(kinds)),
        ("sliding", ["sliding_attention"] * len(kinds)),
        ("mixed", [("sliding_attention", "full_attention")[n % 2] for n in range(len(kinds))]),
    ):
        if wanted != kinds and len(kinds) > 1:
            window = {"sliding_window": 8} if "sliding_window" in base and title != "full" else {}
            yield f"layer_types: {title}", {"layer_types": wanted, **window}


def _tried(config: dict[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    """The verdict of a trial of a configuration, and that configuration as a folder would hold it."""
    from coldpress.graphs.trial import try_out

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.json"
        file.write_text(json.dumps(config, default=str), encoding="utf-8")
        return try_out(Path(place)), config


def _summary(found: dict[str, Any]) -> str:
    return (
        found["why"]
        if found["right"] is None
        else f"{len(found['pressed']) + 1} press, {len(found['refused'])} refused"
    )


def page(table: dict[str, Any]) -> str:
    """The table as Markdown; a test compares it with the file."""
    classes = table["classes"]
    pressed = {name: one for name, one in classes.items() if one["right"] is not None}
    tried = sum(1 + len(one["pressed"]) + len(one["refused"]) for one in pressed.values())
    right = sum(1 + len(one["pressed"]) for one in pressed.values())
    lines = [
        "# Architectures",
        "",
        "Made by `python docs/sweep.py`; do not edit. A tiny random model of each class and setting was pressed in float32 and its",
        "logits compared with transformers' after short and long prompts and token by token; one is right if no logit differs by more than",
        "1e-4 of their spread. What is not in this table is tried in the same way before it is pressed, and refused if it differs.",
        "",
        f"transformers {table['transformers']}, mobius {table['mobius']}: {len(pressed)} of {len(classes)} classes press, and in these",
        f"{right} of {tried} settings that were tried; the others are refused before work.",
        "",
        "| class | settings that press, besides its defaults | refused |",
        "|---|---|---|",
    ]
    for name, one in sorted(pressed.items()):
        refused = "; ".join(f"`{title}` ({_short(why)})" for title, why in one["refused"].items())
        lines.append(f"| {name} | {', '.join(f'`{title}`' for title in one['pressed'])} | {refused} |")
    lines += ["", "## Refused", "", "| class | why |", "|---|---|"]
    lines += [f"| {name} | {_short(one['why'])} |" for name, one in sorted(classes.items()) if one["right"] is None]
    return "\n".join(lines) + "\n"


def _short(why: str) -> str:
    return " ".join(why.replace("|", "/").split())[:160]


if __name__ == "__main__":
    main(sys.argv[1:])
