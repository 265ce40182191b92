"""From logits to the losses of tokens and the perplexity of a text, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from coldpress.errors import ColdpressError

_ROWS = 64


def perplexity(losses: Iterable[np.ndarray]) -> float:
    """exp of the mean of all losses; infinity where that overflows."""
    every = np.concatenate(list(losses))
    if not len(every):
        raise ColdpressError("no tokens to score")
    mean = float(every.mean())
    return math.exp(mean) if not mean > 700 else math.inf


def token_losses(logits: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Negative log-likelihood, float64 [tokens - 1], of each token given those before it; logits [tokens, vocab]."""
    losses = []
    for start in range(0, len(window) - 1, _ROWS):
        targets = window[start + 1 : start + 1 + _ROWS]
        rows = log_softmax(logits[start : start + len(targets)])
        losses.append(-rows[np.arange(len(targets)), targets].astype(np.float64))
    return np.concatenate(losses) if losses else np.zeros(0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities of a few rows [rows, vocab], float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
