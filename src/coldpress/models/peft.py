"""PEFT folders: what an adapter adds to linear layers of its base, as products of two small matrices.

A layer with the weight ``W`` ``[out, in]`` gives ``x W' + x A B``, with ``A`` ``[in, r]`` and ``B`` ``[r, out]``. That
is what LoRA (https://arxiv.org/abs/2106.09685) stores. LoHa (https://arxiv.org/abs/2108.06098) stores the elementwise
product of two such products, which has rank ``r * r``; LoKr (https://arxiv.org/abs/2309.14859) a Kronecker product,
whose rank is the product of the ranks. Both are written here as one product, exactly. What cannot be written so is
refused: it can be merged.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.adapter_folder import CONFIG
from coldpress.models.checkpoint import Span, as_float32, read_header
from coldpress.models.low_rank import LowRank
from coldpress.quant.grid import Floats

WEIGHTS = "adapter_model.safetensors"
MERGE = (
    "merge it (coldpress run-pass merge_adapter_weights -m BASE --adapter_path ADAPTER -o MERGED) and go on with MERGED"
)
LORA_BIAS = "lora_bias"
TRAIN_WITHOUT_BIAS = "train it again without lora_bias: there is no bias in its base to add these to"
_MERGE_OR_TRAIN = f"if the base's layers have biases, {MERGE}; else {TRAIN_WITHOUT_BIAS}"
_TRAIN_LORA = "train an adapter that changes weights, such as LoRA (coldpress finetune)"
#: kinds that add tokens, routes or layers instead of changing weights
_NO_WEIGHTS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
    *("ADAPTION_PROMPT", "XLORA", "POLY"),
)
#: settings under which no weights do what the adapter does
_NEVER_MERGED = {
    "layer_replication": "repeats layers of its base (layer_replication)",
    "alora_invocation_tokens": "acts after its invocation tokens only (aLoRA)",
    "arrow_config": "routes between adapters (Arrow)",
}
_PARTS = {
    "LORA": ("lora_A", "lora_B"),
    "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LOKR": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
}
#: PEFT saves a head's own weight beside the products for it
BASES_OWN = ".base_layer.weight"
#: settings under which an adapter is more than a sum of low-rank products
_BEYOND = {
    "use_dora": "is a DoRA, which rescales whole weights",
    "modules_to_save": "replaces whole modules (modules_to_save)",
    "trainable_token_indices": "replaces rows of the embedding (trainable_token_indices)",
    "target_parameters": "changes parameters that are no linear layers (target_parameters)",
    LORA_BIAS: "has biases of its own (lora_bias)",
    "use_qalora": "pools its inputs (QA-LoRA)",
    "use_bdlora": "is block-diagonal (BD-LoRA)",
    "kasa_config": "changes the weights of its base (KaSA)",
}
#: tensors that no low-rank product of a linear layer has
_FOREIGN = {
    "lora_magnitude_vector": _BEYOND["use_dora"],
    "lora_embedding_A": "changes an embedding, which looks rows up instead of multiplying",
    "lora_embedding_B": "changes an embedding, which looks rows up instead of multiplying",
    "hada_t1": "changes convolutions",
    "hada_t2": "changes convolutions",
    "lokr_t2": "changes convolutions",
    "bias": "has biases of its own",
}
#: initialisations that take a part out of the base's weights
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PREFIX = "base_model.model."
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>(?:lora|hada|lokr)_\w+?)(?P<bias>\.bias)?(?:\.weight)?"
)


@dataclass(frozen=True)
class Adapter:
    """One PEFT folder; ``layers`` by the names of the base's modules."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def method(self) -> str:
        return str(self.config["peft_type"])

    @cached_property
    def of_base(self) -> dict[str, Span]:
        """Weights of the base that PEFT saves beside the products for it (embeddings and heads), by module."""
        return {
            name.removesuffix(BASES_OWN).removeprefix(_PREFIX): span
            for name, span in read_header(self.folder / WEIGHTS).items()
            if name.endswith(BASES_OWN)
        }

    @cached_property
    def layers(self) -> dict[str, LowRank]:
        """Raises ColdpressError for tensors that are no part of a low-rank product."""
        found: dict[str, dict[str, Span]] = {}
        for name, span in read_header(self.folder / WEIGHTS).items():
            if name.endswith(BASES_OWN):
                continue
            match = _TENSOR.fullmatch(name)
            part = "bias" if match and match["bias"] else match["part"] if match else ""
            if match is None or part not in _PARTS[self.method]:
                raise refusal(self.folder, _FOREIGN.get(part, f"replaces whole modules ('{name}')"))
            if len(span.shape) != 2:
                raise refusal(self.folder, f"changes convolutions ('{name}' has shape {list(span.shape)})")
            found.setdefault(match["module"], {})[part] = span
        if not found:
            raise ColdpressError(f"adapter '{self.folder}' is empty: {WEIGHTS} has no tensors")
        return {module: self._layer(module, parts) for module, parts in found.items()}

    def _layer(self, module: str, parts: Mapping[str, Span]) -> LowRank:
        try:
            make = {"LORA": _lora, "LOHA": _loha, "LOKR": _lokr}[self.method]
            return make(parts, self._scaling(module, parts))
        except KeyError as error:
            raise ColdpressError(
                f"adapter '{self.folder}': '{module}' has no tensor {error}", hint="is the file complete?"
            ) from error

    def _scaling(self, module: str, parts: Mapping[str, Span]) -> float:
        """alpha / r, or alpha / sqrt(r); both may be set for modules by pattern."""
        alpha_name = "lora_alpha" if self.method == "LORA" else "alpha"
        rank = _by_pattern(self.config, "rank_pattern", module, self.config.get("r", 8))
        alpha = _by_pattern(self.config, "alpha_pattern", module, self.config.get(alpha_name, 8))
        if self.method == "LORA" and parts["lora_A"].shape[0] != rank:
            raise ColdpressError(
                f"adapter '{self.folder}': {CONFIG} gives '{module}' rank {rank}, its tensors have"
                f" {parts['lora_A'].shape[0]}",
                hint="is the configuration that of these weights?",
            )
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def read_config(folder: Path) -> Mapping[str, Any]:
    """A PEFT folder's configuration, of any kind. Raises ColdpressError for a folder that is incomplete."""
    if not (folder / CONFIG).is_file():
        raise ColdpressError(
            f"'{folder}' is no adapter: it has no {CONFIG}", hint="pass a folder that PEFT's save_pretrained wrote"
        )
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ColdpressError(f"{folder / CONFIG} is not valid JSON: {error}") from error
    if not (folder / WEIGHTS).is_file():
        has_pickle = (folder / "adapter_model.bin").is_file()
        hint = (
            "its weights are a pickle, which is not loaded: save them again with a newer peft" if has_pickle else None
        )
        raise ColdpressError(f"'{folder}' has no {WEIGHTS}", hint=hint)
    return config


def check_kind(folder: Path) -> Mapping[str, Any]:
    """The configuration of an adapter that changes weights.

    Raises ColdpressError for another, which cannot even be merged.
    """
    config = read_config(folder)
    method = str(config.get("peft_type"))
    if method in _NO_WEIGHTS or config.get("num_virtual_tokens"):
        raise ColdpressError(
            f"adapter '{folder}' is of the kind {method}, which changes no weights: it can be neither served nor"
            " merged",
            hint=_TRAIN_LORA,
        )
    for key, why in _NEVER_MERGED.items():
        if config.get(key):
            raise ColdpressError(
                f"adapter '{folder}' {why}: no weights do the same, so it can be neither served nor merged",
                hint=_TRAIN_LORA,
            )
    return config


def read(folder: Path) -> Adapter:
    """An adapter that is low-rank products. Raises ColdpressError for one that is incomplete or more than that."""
    config = check_kind(folder)
    method = str(config.get("peft_type"))
    if method not in _PARTS:
        raise refusal(folder, f"is of the kind {method}; known are {', '.join(_PARTS)}")
    for key, why in _BEYOND.items():
        if config.get(key):
            raise refusal(folder, why, _MERGE_OR_TRAIN if key == LORA_BIAS else MERGE)
    if config.get("task_type") not in (None, "CAUSAL_LM", "FEATURE_EXTRACTION"):
        raise refusal(folder, f"is for the task {config['task_type']}")
    if changes_base(config):
        raise refusal(
            folder, f"starts from '{config['init_lora_weights']}', which takes a part out of its base's weights"
        )
    return Adapter(folder, config)


def changes_base(config: Mapping[str, Any]) -> bool:
    """Whether PEFT takes a part out of the base's weights when it loads an adapter."""
    return str(config.get("init_lora_weights")).lower().startswith(_CHANGES_BASE)


def acts_on_whole(config: Mapping[str, Any]) -> bool:
    """Whether PEFT needs the base's weights to put an adapter on, or changes parameters that several layers have
    together."""
    return changes_base(config) or bool(config.get("target_parameters"))


def refusal(folder: Path, why: str, hint: str = MERGE) -> ColdpressError:
    """What is said of an adapter that is more than slots hold."""
    return ColdpressError(f"adapter '{folder}' {why}; a slot holds a low-rank product for a linear layer", hint=hint)


def _by_pattern(config: Mapping[str, Any], key: str, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as PEFT reads them."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _values(span: Span) -> Floats:
    return as_float32(span.view(), span.dtype)


def _lora(parts: Mapping[str, Span], scaling: float) -> LowRank:
    down, up = parts["lora_A"], parts["lora_B"]  # [r, in], [out, r]
    return LowRank(
        down.shape[1],
        up.shape[0],
        down.shape[0],
        lambda: (np.ascontiguousarray(_values(down).T), np.ascontiguousarray(_values(up).T) * np.float32(scaling)),
    )


def _loha(parts: Mapping[str, Span], scaling: float) -> LowRank:
    """(a1 b1) * (a2 b2), elementwise: column (i, j) of one factor is the product of column i and column j."""
    a1, b1, a2, b2 = (parts[name] for name in _PARTS["LOHA"])

    def factors() -> tuple[Floats, Floats]:
        up = np.einsum("oi,oj->ijo", _values(a1), _values(a2)).reshape(-1, a1.shape[0])
        down = np.einsum("in,jn->nij", _values(b1), _values(b2)).reshape(b1.shape[1], -1)
        return down, up * np.float32(scaling)

    return LowRank(b1.shape[1], a1.shape[0], a1.shape[1] * a2.shape[1], factors)


def _lokr(parts: Mapping[str, Span], scaling: float) -> LowRank:
    """kron(a1 b1, a2 b2) = kron(a1, a2) kron(b1, b2); a factor that is stored whole has the identity beside it."""
    first, second = (_kronecker_factor(parts, name) for name in ("lokr_w1", "lokr_w2"))

    def factors() -> tuple[Floats, Floats]:
        (a1, b1), (a2, b2) = first.factors(), second.factors()
        return np.kron(a1, a2), np.kron(b1, b2) * np.float32(scaling)

    return LowRank(first.inputs * second.inputs, first.outputs * second.outputs, first.rank * second.rank, factors)


def _kronecker_factor(parts: Mapping[str, Span], name: str) -> LowRank:
    if name not in parts:
        up, down = parts[f"{name}_a"], parts[f"{name}_b"]  # [out, r], [r, in]
        return LowRank(
            down.shape[1], up.shape[0], up.shape[1], lambda: (_values(down).T, np.ascontiguousarray(_values(up).T))
        )
    whole = parts[name]  # [out, in]
    rank = min(whole.shape)
    identity = np.eye(rank, dtype=np.float32)
    if whole.shape[0] <= whole.shape[1]:
        return LowRank(whole.shape[1], whole.shape[0], rank, lambda: (_values(whole).T, identity))
    return LowRank(whole.shape[1], whole.shape[0], rank, lambda: (identity, _values(whole).T))
