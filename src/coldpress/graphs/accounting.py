"""Every tensor of a checkpoint is somewhere in the graphs, and every weight of the graphs is from the checkpoint.

A tensor that nothing reads is a part of the model that is lost in silence: a bias that the graph has no addition for,
the scales of codes in a format that nobody noticed. So it stops the press by name, unless a reason is known: in the
table here, or in the tensor's own values. What transformers itself has no place for is taken out before (`capture`).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Span
from coldpress.models.ties import is_own_head

#: (names, number of axes or None, why nothing is lost)
_LEFT_OUT: tuple[tuple[str, int | None, str], ...] = (
    (r"(^|\.)(rotary_emb|rotary_pos_emb|rotary)\.(inv_freq|cos_cached|sin_cached)$", None, "computed from config.json"),
    (r"(^|\.)(position_ids|token_type_ids)$", None, "a row of numbers that is made where it is needed"),
    (r"(^|\.)(attn|attention|self_attn|crossattention)\.bias$", 4, "the causal mask"),
    (r"(^|\.)(attn|attention|self_attn|crossattention)\.masked_bias$", None, "what masked scores are set to"),
    (r"(^|\.)mtp(_layers)?\.", None, "layers that guess later tokens, which a decoder does not run"),
)
#: tables of positions in OPT and BART begin with two rows that no position asks for
_POSITIONS, _ROWS_IN_FRONT = r"(^|\.)embed_positions\.weight$", 2
#: of graphs that give hidden states: heads that are no part of them
_HEADS = r"(^|\.)(pooler|cls|vocab_transform|vocab_layer_norm|vocab_projector|lm_head|classifier|layernorm_head)\."
_NAMED = 5
_PLACEHOLDER_VALUES = 2


def require_all_read(
    tensors: Mapping[str, Span], taken: Iterable[Span], whole: Iterable[str], heads: bool
) -> list[str]:
    """What was left out of a checkpoint with ``tensors`` for a reason that the reader of a report should know.

    ``taken``: the parts of them that fill weights of the graphs; ``whole``: names of tensors that all of a computed
    weight is made from; ``heads``: whether the graphs end in logits. Raises ColdpressError for a tensor that is lost.
    """
    left = _unread(tensors, taken, set(whole))
    remarks = []
    if not heads and (found := [name for name in left if re.search(_HEADS, name)]):
        remarks.append(f"The graph gives hidden states; {listed(found)} are left out.")
        left = [name for name in left if name not in found]
    if lost := [name for name in left if not is_excused(name, tensors)]:
        raise ColdpressError(
            f"the graph of this architecture does not read {listed(lost)} of the checkpoint, so the result would be"
            " another model",
            hint="is config.json that of these weights? If it is, this model is not supported",
        )
    return remarks


def require_no_placeholders(graph: Any, sources: Mapping[str, Span]) -> None:
    """Raise ColdpressError for a weight that the builder of the graph left at zeros and the checkpoint has no tensor
    for."""
    for name, value in graph.initializers.items():
        constant = value.const_value
        if name in sources or constant is None or not value.uses() or constant.size < _PLACEHOLDER_VALUES:
            continue
        array = constant.numpy()
        if array.dtype.kind in "fV" and not np.any(array.view(np.uint8) if array.dtype.kind == "V" else array):
            raise ColdpressError(
                f"the checkpoint has no tensor for '{name}', {list(array.shape)}",
                hint="is config.json that of these weights?",
            )


def _unread(tensors: Mapping[str, Span], taken: Iterable[Span], whole: set[str]) -> list[str]:
    """The tensors that are not taken, or not all of: distinct parts must be as large as what is needed of the
    tensor."""
    parts: dict[str, set[Span]] = defaultdict(set)
    for span in taken:
        parts[span.name].add(span)
    return [
        name
        for name, span in tensors.items()
        if name not in whole and sum(math.prod(part.shape) for part in parts[span.name]) < _needed(name, span)
    ]


def _needed(name: str, span: Span) -> int:
    """How many numbers of a tensor a graph needs at least."""
    rows, *row = span.shape or (1,)
    return (rows - _ROWS_IN_FRONT if re.search(_POSITIONS, name) else rows) * math.prod(row)


def is_excused(name: str, tensors: Mapping[str, Span]) -> bool:
    """Whether nothing is lost with a tensor of a checkpoint that no graph reads."""
    span = tensors[name]
    if any(re.search(pattern, name) and axes in (None, len(span.shape)) for pattern, axes, _ in _LEFT_OUT):
        return True
    if (
        name.endswith("bias") and span.shape
    ):  # AutoGPTQ and BART write biases where there are none: adding zeros is no loss
        return not np.any(span.rows(0, span.shape[0]))
    return is_own_head(name, tensors) is False


def listed(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
