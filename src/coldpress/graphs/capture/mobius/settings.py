"""What mobius 0.1 reads wrong in a configuration, put right before it builds the graph.

Which layers have a bias is read from the checkpoint's own tensors. The rest is a table: each entry was found by
comparing a tiny model's logits with transformers' (``graphs/trial.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

#: model type -> fields of mobius' configuration
_ALWAYS: dict[str, dict[str, Any]] = {
    "gptj": {"rope_interleave": True, "mlp_bias": True},
    "codegen": {"rope_interleave": True, "mlp_bias": True},
    "cohere": {"rope_interleave": True},
    "cohere2": {"rope_interleave": True},
    "ernie4_5": {"rope_interleave": True},
    "ernie4_5_moe": {"rope_interleave": True},
    "helium": {"rope_interleave": True},
    "opt": {"rms_norm_eps": 1e-5},
    "openai-gpt": {"hidden_act": "gelu_new"},
    "bart": {"rms_norm_eps": 1e-5},
    "mvp": {"rms_norm_eps": 1e-5},
}
#: field of mobius' configuration -> layers that have a bias if it is set
_BIASES = {"attn_qkv_bias": ".self_attn.q_proj", "attn_o_bias": ".self_attn.o_proj", "mlp_bias": ".mlp.down_proj"}


def has_biases_in_doubt(config: Any, tensors: Collection[str]) -> bool:
    """Whether a checkpoint has biases that its configuration, as transformers reads it, does not ask for.

    Those of attention have no setting in many architectures that have them; those of an MLP have one.
    """
    attention, mlp = getattr(config, "attention_bias", None), getattr(config, "mlp_bias", None)
    return (attention is False and any(".self_attn." in name and name.endswith("_proj.bias") for name in tensors)) or (
        not mlp and any(".mlp." in name and name.endswith("_proj.bias") for name in tensors)
    )


def corrected(module_class: Any, config_class: Any, tensors: Collection[str]) -> Any:
    """A class of mobius' modules whose configuration is read right. ``tensors``: the names in the checkpoint."""
    from mobius import ArchitectureConfig

    base = config_class or getattr(module_class, "config_class", None) or ArchitectureConfig

    def from_transformers(cls: Any, config: Any, **known: Any) -> Any:
        read = base.from_transformers(config, **known)
        fields = {field.name for field in dataclasses.fields(read)}
        wanted = _settings(config, read, tensors)
        return dataclasses.replace(read, **{name: value for name, value in wanted.items() if name in fields})

    reader = type(base.__name__, (base,), {"from_transformers": classmethod(from_transformers)})
    return type(module_class.__name__, (module_class,), {"config_class": reader})


def _settings(config: Any, read: Any, tensors: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, layer in _BIASES.items():
        if any(name.endswith(f"{layer}.weight") for name in tensors):
            found[field] = any(name.endswith(f"{layer}.bias") for name in tensors)
    if getattr(read, "rope_type", None) == "dynamic" and "alpha" not in (read.rope_scaling or {}):
        found["rope_type"] = "default"  # it begins where the context ends, and mobius scales what is inside
    return {**found, **_ALWAYS.get(config.model_type, {})}
