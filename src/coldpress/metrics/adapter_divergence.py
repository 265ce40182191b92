"""How far the adapters of an ONNX model are from PEFT's: the same prompt through both, adapter by adapter.

The reference is the Hugging Face base, as `referee` has it, with the adapter put on by PEFT itself. Where PEFT is not
installed, or cannot put an adapter on (it is for fused layers that this base has apart, or the reverse), the low-rank
products are added here. ``kl_without`` is the same divergence with the adapter left off. ``effect`` is how much of the
change that the adapter makes to the source's logits it makes to the model's: 1 is all of it, whatever the base lost by
rounding, which is in both of the model's logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from coldpress.data.texts import heldout
from coldpress.errors import ColdpressError
from coldpress.graphs import adapter_file
from coldpress.graphs.scoring import Decoder
from coldpress.metrics.divergence import kl_divergence
from coldpress.metrics.perplexity import scoring_provider
from coldpress.models import adapter_folder
from coldpress.models.model import Model
from coldpress.networks.referee import MAX_MEMORY, reference_of
from coldpress.parts import Context, Metric, Value


@dataclass(frozen=True)
class AdapterDivergence(Metric):
    """Compares each adapter file of an ONNX model with ``ctx.source``, the base with its adapters it was made from.

    The numbers are those of the worst adapter; ``adapters`` has them one by one.
    """

    tokens: int = field(default=128, metadata={"help": "length of the prompt, taken from held-out text"})
    files: tuple[str, ...] = field(default=(), metadata={"help": "text or jsonl files instead of the built-in text"})
    max_memory: float | None = field(default=None, metadata={"help": MAX_MEMORY})
    trust_remote_code: bool = field(default=False, metadata={"help": "run model code from the source folder"})

    values: ClassVar[Mapping[str, Value]] = {
        "kl": Value("lower", "nats"),
        "top1_agreement": Value("higher"),
        "logit_difference": Value("lower"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    reads: ClassVar[tuple[str, ...]] = ("files",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "transformers")
    version: ClassVar[int] = 2

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        if ctx.source is None or ctx.source.format != "adapter":
            raise ColdpressError("adapter_divergence needs the base with its adapters to compare with")
        folder = adapter_folder.read(ctx.source.path)
        names = list(ctx.source.provenance.attached or folder.adapters)
        [window] = [window for _, window in heldout.named_windows(folder.base, self.tokens, 1, self.files)]
        decoder = Decoder(model.path, ctx.target.thread_count, scoring_provider(ctx))
        without = decoder.logits(window)
        base, voice = reference_of(folder.base, self.trust_remote_code, self.max_memory)
        [source] = base.logits([window])
        found: list[dict[str, Any]] = []
        for name, path in zip(names, folder.adapters.values(), strict=True):
            file = adapter_file.beside(model.path, name, len(names))
            reference = base.another()
            put_on_by = reference.attach(path)
            [expected] = reference.logits([window])
            logits = decoder.logits(window, file)
            numbers = {**_compared(expected, logits, without), "effect": _effect(expected - source, logits - without)}
            found.append({"name": name, **numbers, "reference": put_on_by})
            ctx.progress("comparing adapters with the source", len(found), len(names))
        return {
            "kl": max(one["kl"] for one in found),
            "top1_agreement": min(one["top1_agreement"] for one in found),
            "logit_difference": max(one["logit_difference"] for one in found),
            "adapters": found,
            "base": asdict(voice),
        }


def _compared(expected: np.ndarray, logits: np.ndarray, without: np.ndarray) -> dict[str, float]:
    """``logit_difference``: the largest one, in units of the spread of the source's logits."""
    return {
        "kl": float(max(kl_divergence(expected, logits).mean(), 0.0)),
        "kl_without": float(max(kl_divergence(expected, without).mean(), 0.0)),
        "top1_agreement": float((expected.argmax(-1) == logits.argmax(-1)).mean()),
        "logit_difference": float(np.abs(expected - logits).max() / expected.std()),
    }


def _effect(wanted: np.ndarray, made: np.ndarray) -> float | None:
    """The part of one change of logits that another one holds; None where nothing was to change, and nothing did."""
    size = float(np.vdot(wanted, wanted))
    if size == 0.0:
        return None if not made.any() else 0.0
    return float(np.vdot(wanted, made)) / size
