"""Whether the head may have the four bits of the layers: what that costs, against what a token is spared to read.

The head is the largest matrix of a small model, and every token reads all of it: decoding is as fast as memory is. What
four bits cost is measured on inputs that were kept from its calibration, as the divergence of the next token's
distribution: for a small disturbance half the variance of what it does to the logits. Logits that matter are few, so
few rows are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.models.provenance import HeadRecord
from coldpress.networks.layerwise import Layerwise
from coldpress.quant.grid import Floats

#: what a head with more bits than the layers has, and its scales: 8 bits in symmetric blocks of 32
_MANY_BITS = 8 + 16 / 32
#: nats a token that a reader gives for e times the speed: a percent for a thousandth, which is a tenth of a percent of
#: perplexity. Four bits instead of eight in the layers cost SmolLM2 0.17 and Gemma 3 270M 0.16
_NATS = 0.1
#: what a tied embedding's errors cost altogether, those of the logits being 1: as inputs they cost two models 0.5 to 1
_AS_INPUTS = 2.0
#: logits of a token that are looked at, and tokens at once
_LOGITS, _TOKENS = 64, 32


@dataclass(frozen=True)
class Trial:
    """``divergence``: nats a token that four bits in the head cost; ``saved``: the share of a token's bytes they
    spare."""

    divergence: float
    saved: float

    @property
    def worth(self) -> float:
        """Nats a token that may be lost for what is saved."""
        return -_NATS * math.log(1 - self.saved)

    @property
    def pays(self) -> bool:
        return self.divergence <= self.worth

    @property
    def says(self) -> str:
        saved, cost = f"{self.saved:.0%} fewer bytes a token", f"{self.divergence:.2g} nats a token"
        if self.pays:
            return f"The head has 4 bits, too: {saved} for {cost}. --head_bits 8 gives it 8."
        return f"The head keeps 8 bits: with 4 there were {saved}, for {cost}. --head_bits 4 gives it 4."

    @property
    def record(self) -> HeadRecord:
        return HeadRecord(self.divergence, self.saved, self.worth, 4 if self.pays else 8)


def saved_bytes(shape: tuple[int, int], fewer: int, others: int) -> float:
    """The share of a token's bytes that a head of ``shape`` with ``fewer`` bytes spares, beside ``others`` of the
    layers."""
    many = shape[0] * shape[1] * _MANY_BITS / 8
    return max(many - fewer, 0.0) / (many + others)


def divergence(decoder: Layerwise, inputs: Floats, rounded: Callable[[Floats], Floats]) -> float:
    """KL(head || rounded head) in nats a token on ``inputs [tokens, width]``, roughly; ``rounded`` does some rows.

    An embedding that is tied to the head is rounded with it.
    """
    weight, config = decoder.head_weight().cpu().numpy(), decoder.config
    likely = [_likeliest(_bent(config, part @ weight.T)) for part in np.array_split(inputs, -(-len(inputs) // _TOKENS))]
    places, logits, shares = (np.concatenate(found) for found in zip(*likely, strict=True))
    rows, own = np.unique(places, return_inverse=True)
    after = _bent(config, inputs @ rounded(np.ascontiguousarray(weight[rows])).T)
    moved = np.take_along_axis(after, own.reshape(places.shape), axis=1) - logits
    moved -= moved.mean(axis=1, keepdims=True)  # what all logits have in common changes nothing
    squares = np.square(moved)
    # the others move as much, each its own way
    others = (1 - shares.sum(axis=1)) * squares.mean(axis=1)
    variance = (shares * squares).sum(axis=1) + others - np.square((shares * moved).sum(axis=1))
    found = float(variance.mean() / 2)
    return found * _AS_INPUTS if decoder.is_tied else found


def _likeliest(logits: Floats) -> tuple[NDArray[np.intp], Floats, Floats]:
    """The places of the largest logits of each row, these logits, and how likely their tokens are."""
    most = min(_LOGITS, logits.shape[1])
    places = np.argpartition(logits, -most, axis=1)[:, -most:]
    largest = np.take_along_axis(logits, places, axis=1)
    return places, largest, np.exp(largest - _log_sum(logits))


def _log_sum(logits: Floats) -> Floats:
    most = logits.max(axis=1, keepdims=True)
    found: Floats = most + np.log(np.exp(logits - most).sum(axis=1, keepdims=True))
    return found


def _bent(config: Any, logits: Floats) -> Floats:
    """What networks do to what the head gives: a factor (Granite, Cohere), a cap (Gemma 2)."""
    factor = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    cap = getattr(config, "final_logit_softcapping", None)
    logits = logits * np.float32(factor)
    return np.float32(cap) * np.tanh(logits / np.float32(cap)) if cap else logits
