"""Causal attention in bfloat16 on a processor, a few queries at a time, as products of matrices.

PyTorch's fused attention takes three to four times as long as products of matrices do there. Here a block of queries
meets the keys up to its own end only, and the heads that share keys are rows of one product. Whatever is not plainly
causal goes PyTorch's way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_NAME = "coldpress_blocks"
_QUERIES = 64


def attend_in_blocks(model: Any) -> None:
    """Have a transformers model use it where it would use PyTorch's (``sdpa``)."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, _forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        if config._attn_implementation == "sdpa":
            config._attn_implementation = _NAME


def _forward(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: heads ``[batch, heads, tokens, size]``, to ``[batch, tokens, heads, size]``."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    asked = more.get("is_causal")
    causal = getattr(module, "is_causal", True) if asked is None else asked
    plain = causal and attention_mask is None and all(more.get(name) is None for name in _NOT_PLAIN)
    fits = query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] == key.shape[2]
    if not plain or not fits or more.get("dropout"):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return found
    scaling = more.get("scaling")
    return causal_attention(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


_NOT_PLAIN = ("softcap", "position_bias", "cache", "s_aux")


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """``query [batch, heads, tokens, size]``, ``key`` and ``value`` of as many heads or a part of them; ``[batch,
    tokens, heads, size]``."""
    import torch

    batch, heads, tokens, _ = query.shape
    shared = key.shape[1]
    grouped = (query * scaling).unflatten(1, (shared, heads // shared))
    above = torch.full((_QUERIES, _QUERIES), float("-inf"), dtype=query.dtype).triu(1)
    output = query.new_empty(batch, tokens, heads, value.shape[-1])
    for start in range(0, tokens, _QUERIES):
        stop = min(start + _QUERIES, tokens)
        block = heads // shared, stop - start
        scores = grouped[:, :, :, start:stop].flatten(2, 3) @ key[:, :, :stop].transpose(-1, -2)
        scores.unflatten(2, block)[..., start:] += above[: block[1], : block[1]]
        found = scores.softmax(-1) @ value[:, :, :stop]
        output[:, start:stop] = found.unflatten(2, block).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return output
