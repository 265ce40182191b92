"""Perplexity: how surprised a causal language model is by held-out text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from coldpress.data.texts import heldout
from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.measuring.losses import perplexity, token_losses
from coldpress.models.model import Model
from coldpress.networks.referee import MAX_MEMORY, reference_of
from coldpress.parts import Context, DataSource, Metric, Value, option

_WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class Perplexity(Metric):
    """exp of the mean negative log-likelihood of every token but the first of each window."""

    data: DataSource | None = option("windows of text instead of the built-in ones", None)
    windows: int = option("how many windows of the built-in text, or of files, to score", 8)
    tokens: int = option("tokens in such a window", 256)
    files: tuple[str, ...] = option("text or jsonl files instead of the built-in text", ())
    max_memory: float | None = option(MAX_MEMORY, None)
    trust_remote_code: bool = option("run model code from the source folder", False)

    values: ClassVar[Mapping[str, Value]] = {"perplexity": Value("lower")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf")
    reads: ClassVar[tuple[str, ...]] = ("files",)
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.data is not None and (self.windows, self.tokens, self.files) != (8, 256, ()):
            raise ColdpressError(
                "perplexity: windows, tokens and files have no effect with data",
                hint="give max_samples and max_seq_len to the data",
            )

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        losses = []
        logits_of = self._scorer(model, ctx)
        windows = self._windows(model, ctx)
        while group := list(islice(windows, _WINDOWS_AT_ONCE)):
            scores = logits_of([ids for ids, _ in group])
            for (ids, is_scored), logits in zip(group, scores, strict=True):
                losses.append(token_losses(logits, ids)[is_scored[1:]])
                ctx.progress("perplexity", len(losses), 0 if self.data else self.windows)
        return {"perplexity": perplexity(losses), "scored_tokens": sum(map(len, losses))}

    def _windows(self, model: Model, ctx: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Token ids ``[tokens]``, and which of them are scored; the first one never is."""
        if self.data is None:
            for window in heldout.windows(model.path, self.tokens, self.windows, self.files):
                yield window, np.ones(len(window), dtype=bool)
            return
        for batch in self.data.batches(model, ctx):
            if "input_ids" not in batch.inputs or not isinstance(batch.labels, np.ndarray):
                raise ColdpressError(f"perplexity is for text; data of the kind {self.data.type} gives none")
            masks = batch.inputs.get("attention_mask", np.ones_like(batch.inputs["input_ids"]))
            for ids, mask, labels in zip(batch.inputs["input_ids"], masks, batch.labels, strict=True):
                yield ids[mask == 1], labels[mask == 1] >= 0

    def _scorer(self, model: Model, ctx: Context) -> Callable[[list[np.ndarray]], Iterable[np.ndarray]]:
        if model.format == "hf":
            return reference_of(model.path, self.trust_remote_code, self.max_memory)[0].logits
        decoder = Decoder(model.path, ctx.target.thread_count, scoring_provider(ctx))
        return partial(map, decoder.logits)


def scoring_provider(ctx: Context) -> str:
    """The target's execution provider, or the CPU when this machine has no such device."""
    return ctx.target.provider if ctx.target.is_here else "CPUExecutionProvider"
