"""Whether a head and an embedding that the configuration ties are one matrix in the checkpoint, too.

transformers 5 ties them only where the checkpoint has one of the two, or both with the same values; a head with values
of its own is kept. So does coldpress, everywhere: in the graph, in the reference, in calibration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from coldpress.models.checkpoint import Span

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|head)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings|shared)\.weight$")
_ROWS = 4096


def has_own_head(tensors: Mapping[str, Span]) -> bool:
    """Whether a checkpoint has a head with other values than its token embedding."""
    return any(is_own_head(name, tensors) for name in tensors)


def is_own_head(name: str, tensors: Mapping[str, Span]) -> bool | None:
    """Whether a tensor is a head with other values than the token embedding; None for what is no such head.

    False: it is the embedding once more.
    """
    if not _HEAD.search(name):
        return None
    head = tensors[name]
    tables = [span for other, span in tensors.items() if _EMBEDDING.search(other) and span.shape == head.shape]
    return None if not tables else not any(_same_values(head, table) for table in tables)


def _same_values(one: Span, other: Span) -> bool:
    rows = one.shape[0]
    return all(
        np.array_equal(one.rows(at, min(at + _ROWS, rows)), other.rows(at, min(at + _ROWS, rows)))
        for at in range(0, rows, _ROWS)
    )
