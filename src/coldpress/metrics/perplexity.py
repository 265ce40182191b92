"""Perplexity: how surprised a causal language model is by held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.graphs.runtime import Decoder
from coldpress.model import Model
from coldpress.networks import heldout
from coldpress.networks.reference import Reference
from coldpress.parts import Context, Metric, Value

_ROWS = 64


@dataclass(frozen=True)
class Perplexity(Metric):
    """exp of the mean negative log-likelihood of every token but the first of each window."""

    windows: int = field(default=8, metadata={"help": "how many windows of text to score"})
    tokens: int = field(default=256, metadata={"help": "tokens in a window"})
    files: tuple[str, ...] = field(default=(), metadata={"help": "text or jsonl files instead of the built-in text"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run model code from the source folder"})

    values: ClassVar[Mapping[str, Value]] = {"perplexity": Value("lower")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf")

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        windows = heldout.windows(model.path, self.tokens, self.windows, self.files)
        losses = []
        for done, (window, logits) in enumerate(zip(windows, self._logits(model, ctx, windows), strict=True), start=1):
            losses.append(token_losses(logits, window))
            ctx.progress("perplexity", done, len(windows))
        return {"perplexity": perplexity(losses), "scored_tokens": sum(map(len, losses))}

    def _logits(self, model: Model, ctx: Context, windows: list[np.ndarray]) -> Iterable[np.ndarray]:
        if model.format == "hf":
            return Reference(model.path, self.trust_remote_code).logits(windows)
        decoder = Decoder(model.path, ctx.target.thread_count, scoring_provider(ctx))
        return map(decoder.logits, windows)


def scoring_provider(ctx: Context) -> str:
    """The target's execution provider, or the CPU when this machine has no such device."""
    return ctx.target.provider if ctx.target.is_here else "CPUExecutionProvider"


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
