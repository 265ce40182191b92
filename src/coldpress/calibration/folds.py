"""Where a decoder layer can take back a scaling of a linear's inputs, so that AWQ costs nothing at run time.

Three places: the norm before q/k/v and before gate/up; the up projection before down, whose output is only multiplied;
the value projection before the linear after attention. They hold for decoders built like Llama: a norm in front of
attention and one in front of a gated MLP. In a mixture of experts the norm stands before all experts, a shared one and
the routers, which stay float and are scaled, too; and each expert's up projection before its own down. A network that
is not in the table keeps its inputs as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from coldpress.networks.routers import is_router
from coldpress.networks.weights import Change, Weights
from coldpress.quant import awq
from coldpress.quant.grid import Floats

#: model_type -> what the network adds to the weight of a norm before it multiplies
_NORM_OFFSETS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "helium", "seed_oss"), 0.0),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"), 0.0),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), 1.0),
}
_NORM, _ROWS, _VALUE = "norm", "rows", "value"


@dataclass(frozen=True)
class Fold:
    """``readers`` share the input that ``source`` makes; all are names of modules.

    ``first``: the row of the source where the part that makes this input begins (fused projections); ``heads``: query
    and value heads where the input comes from attention; ``offset``: of a norm; ``routers``: read the input, too, and
    stay float.
    """

    kind: str
    source: str
    readers: tuple[str, ...]
    offset: float = 0.0
    first: int = 0
    heads: tuple[int, int] | None = None
    routers: tuple[str, ...] = ()

    def apply(self, weights: Weights, scales: Floats, dtype: Any) -> tuple[Weights, Floats]:
        """Divide the input by ``scales [K]`` at its source and multiply the readers' columns; gives the scales used.

        A norm is stored as ``dtype``: the scales are moved to where nothing is lost by that.
        """
        if self.kind == _NORM:
            changes, scales = self._into_norm(weights, scales, dtype)
        else:
            changes = self._into_rows(weights, scales)
        readers = [f"{reader}.weight" for reader in (*self.readers, *self.routers)]
        return weights.changed({**changes, **dict.fromkeys(readers, partial(awq.scale_inputs, scales=scales))}), scales

    def _into_norm(self, weights: Weights, scales: Floats, dtype: Any) -> tuple[dict[str, Change], Floats]:
        name = f"{self.source}.weight"
        before = weights[name] + np.float32(self.offset)
        stored = awq.fold_norm(weights[name], scales, self.offset).astype(dtype).astype(np.float32)
        after = stored + np.float32(self.offset)
        exact: Floats = np.where(after != 0, before / np.where(after != 0, after, 1), np.float32(1))
        return {name: lambda _: stored}, exact

    def _into_rows(self, weights: Weights, scales: Floats) -> dict[str, Change]:
        names = [name for name in (f"{self.source}.weight", f"{self.source}.bias") if name in weights]
        return dict.fromkeys(names, partial(self._divide_rows, scales=scales))

    def _divide_rows(self, weight: Floats, scales: Floats) -> Floats:
        whole, rows = weight.copy(), slice(self.first, None)
        if self.heads is None:
            whole[rows] = awq.fold_producer(whole[rows], scales)
        else:
            whole[rows] = awq.fold_value(whole[rows], scales, self.heads)
        return whole


def folds_of(
    layer: str, weights: Mapping[str, Floats], config: Any, experts: Sequence[tuple[str, ...]] = ()
) -> list[Fold]:
    """The folds of a layer with these weights, in the order in which they are to be searched.

    ``experts``: the modules gate, up and down of each.
    """
    offset = _NORM_OFFSETS.get(str(getattr(config, "model_type", "")))
    if offset is None:
        return []
    names = _Names(layer, weights)
    found = [names.attention_norm(offset), names.value(config), names.mlp_norm(offset), names.up("mlp")]
    if experts:
        block = experts[0][0].removeprefix(f"{layer}.").partition(".experts.")[0]
        found += [names.mixture_norm(offset, block, experts), names.up(f"{block}.shared_expert")]
        found += [Fold(_ROWS, up, (down,)) for _, up, down in experts]
    return [fold for fold in found if fold]


@dataclass
class _Names:
    layer: str
    weights: Mapping[str, Floats]

    def _has(self, *modules: str) -> bool:
        return all(f"{self.layer}.{module}.weight" in self.weights for module in modules)

    def _at(self, module: str) -> str:
        return f"{self.layer}.{module}"

    def _full(self, *modules: str) -> tuple[str, ...]:
        return tuple(f"{self.layer}.{module}" for module in modules)

    def attention_norm(self, offset: float) -> Fold | None:
        for readers in (("q_proj", "k_proj", "v_proj"), ("qkv_proj",)):
            inside = tuple(f"self_attn.{name}" for name in readers)
            if self._has("input_layernorm", *inside):
                return Fold(_NORM, self._at("input_layernorm"), self._full(*inside), offset)
        return None

    def mlp_norm(self, offset: float) -> Fold | None:
        own = self._has("pre_feedforward_layernorm")
        norm = "pre_feedforward_layernorm" if own else "post_attention_layernorm"
        for readers in (("gate_proj", "up_proj"), ("gate_up_proj",)):
            inside = tuple(f"mlp.{name}" for name in readers)
            if self._has("input_layernorm", norm, *inside):
                return Fold(_NORM, self._at(norm), self._full(*inside), offset)
        return None

    def mixture_norm(self, offset: float, block: str, experts: Sequence[tuple[str, ...]]) -> Fold | None:
        shared = tuple(f"{block}.shared_expert.{name}" for name in ("gate_proj", "up_proj"))
        readers = self._full(*shared) if self._has(*shared) else ()
        readers += tuple(module for gate, up, _ in experts for module in (gate, up))
        inside = [name.removesuffix(".weight") for name in self.weights if name.startswith(self._at(block))]
        routers = tuple(name for name in inside if is_router(name))
        if not self._has("input_layernorm", "post_attention_layernorm"):
            return None
        return Fold(_NORM, self._at("post_attention_layernorm"), readers, offset, routers=routers)

    def value(self, config: Any) -> Fold | None:
        heads = (
            int(config.num_attention_heads),
            int(getattr(config, "num_key_value_heads", 0) or config.num_attention_heads),
        )
        if not self._has("self_attn.o_proj") or getattr(config, "clip_qkv", None):  # what is clipped cannot be scaled
            return None
        inputs = self.weights[f"{self.layer}.self_attn.o_proj.weight"].shape[1]
        for source in ("v_proj", "qkv_proj"):
            if self._has(f"self_attn.{source}"):
                rows = len(self.weights[f"{self.layer}.self_attn.{source}.weight"])
                first = rows - inputs * heads[1] // heads[0]
                return Fold(
                    _VALUE, self._at(f"self_attn.{source}"), self._full("self_attn.o_proj"), first=first, heads=heads
                )
        return None

    def up(self, mlp: str) -> Fold | None:
        if not self._has(f"{mlp}.down_proj"):
            return None
        inputs = self.weights[f"{self.layer}.{mlp}.down_proj.weight"].shape[1]
        for source in ("up_proj", "gate_up_proj"):
            if self._has(f"{mlp}.{source}") and (source != "up_proj" or self._has(f"{mlp}.gate_proj")):
                first = len(self.weights[f"{self.layer}.{mlp}.{source}.weight"]) - inputs
                return Fold(_ROWS, self._at(f"{mlp}.{source}"), self._full(f"{mlp}.down_proj"), first=first)
        return None
