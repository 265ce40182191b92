"""A network of transformers as the graphs that it becomes: one, or an encoder and a decoder.

The encoder of a pair gives the keys and values that each layer of the decoder reads of it, so that they are computed
once for a text or a sound; the decoder takes them, under the same names, with those of the tokens before, and gives
logits and the keys and values with the new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

Feed = Mapping[str, np.ndarray]
#: tokens that the two examples of a decoder have, and tokens before them; no other two axes differ so
_TOKENS, _PAST = (5, 7), (6, 9)


@dataclass(frozen=True)
class Component:
    """What one graph computes: ``network``, called with a mapping of tensors, and two examples of them.

    ``title``: what an error calls it.
    """

    name: str
    network: nn.Module
    first: Feed
    second: Feed
    title: str


def components_of(network: Any, first: Feed, second: Feed) -> Iterator[Component]:
    """The graphs of a network, which takes what ``first`` and ``second`` are examples of."""
    title = type(network).__name__
    if not network.config.is_encoder_decoder:
        network.config.use_cache = False
        yield Component("model", Whole(network), first, second, title)
        return
    network.set_attn_implementation("eager")  # T5 reshapes what the fused one gives in a way that no graph can
    encoder = Encoder(network)
    yield Component("encoder", encoder, first, second, f"the encoder of {title}")
    one, other = (_of_decoder(encoder, feed, place) for place, feed in enumerate((first, second)))
    yield Component("decoder", Decoder(network), one, other, f"the decoder of {title}")


class Whole(nn.Module):
    """A network that gives all its outputs at once, by name."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {name: value for name, value in self.network(**given).items() if _is_of_tensors(value)}


class Encoder(nn.Module):
    """The encoder of a network, and of its decoder what depends on that alone: the rest of it is read by nobody and
    dropped."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from transformers import DynamicCache, EncoderDecoderCache

        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        begin = next(iter(given.values())).new_zeros((next(iter(given.values())).shape[0], 1), dtype=torch.long)
        found = self.network(**given, decoder_input_ids=begin, past_key_values=cache, use_cache=True)
        return {"last_hidden_state": found.encoder_last_hidden_state, **_named(cache.cross_attention_cache, "encoder")}


class Decoder(nn.Module):
    """The decoder of a network with its head: tokens, and keys and values, to logits and the keys and values after
    them."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from transformers import DynamicCache, EncoderDecoderCache

        layers = range(sum(name.endswith(".encoder.key") for name in given))
        own, crossed = (
            DynamicCache([tuple(given[f"past_key_values.{layer}.{side}.{kind}"] for kind in ("key", "value"))
                          for layer in layers])
            for side in ("decoder", "encoder")
        )  # fmt: skip
        keys = given["past_key_values.0.encoder.key"]
        unread = keys.new_zeros((keys.shape[0], keys.shape[2], self.network.config.hidden_size))
        mask = {"attention_mask": given["encoder_attention_mask"]} if "encoder_attention_mask" in given else {}
        found = self.network(
            decoder_input_ids=given["input_ids"],
            encoder_outputs=(unread,),
            past_key_values=EncoderDecoderCache(own, crossed),
            use_cache=True,
            **mask,
        )
        return {"logits": found.logits, **_named(own, "decoder", "present")}


def _named(cache: Any, side: str, what: str = "past_key_values") -> dict[str, torch.Tensor]:
    return {
        f"{what}.{layer}.{side}.{kind}": tensor
        for layer, one in enumerate(cache.layers)
        for kind, tensor in (("key", one.keys), ("value", one.values))
    }


def _of_decoder(encoder: Encoder, feed: Feed, place: int) -> dict[str, np.ndarray]:
    """What the decoder gets for an example of the encoder: arrays of the right shapes, which is all that tracing
    needs."""
    from torch._subclasses import FakeTensorMode

    kind = next(encoder.parameters()).dtype
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as shapes_only:
        tensors = {name: shapes_only.from_tensor(torch.from_numpy(array)) for name, array in feed.items()}
        found = encoder({name: one.to(kind) if one.is_floating_point() else one for name, one in tensors.items()})
    found.pop("last_hidden_state")
    made: dict[str, np.ndarray] = {"input_ids": np.zeros((len(next(iter(feed.values()))), _TOKENS[place]), np.int64)}
    if "attention_mask" in feed:
        made["encoder_attention_mask"] = feed["attention_mask"]
    for name, tensor in found.items():
        batch, heads, length, size = tensor.shape
        own = np.zeros((batch, heads, _PAST[place], size), np.float32)
        made |= {name.replace(".encoder.", ".decoder."): own, name: np.zeros((batch, heads, length, size), np.float32)}
    return made


def _is_of_tensors(value: Any) -> bool:
    parts = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(part, torch.Tensor) for part in parts)
