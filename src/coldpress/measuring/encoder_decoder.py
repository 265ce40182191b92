"""An encoder and a decoder in ONNX, ``encoder.onnx`` and ``decoder.onnx``, run together.

The encoder runs once. What its graph calls ``past_key_values.LAYER.encoder.*`` goes into the decoder as it is;
``present.LAYER.decoder.*`` of one token goes in with the next.

How an answer is searched for is transformers' business: its own class of the model generates, and asks these graphs
instead of its layers, so that beams, forced tokens and sounds longer than the encoder's window are what they are there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.graphs.session import Session
from coldpress.graphs.signature import empty_cache
from coldpress.target import Target

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
HIDDEN, MASK = "last_hidden_state", "encoder_attention_mask"
_PAST, _PRESENT = "past_key_values.", "present."


def is_encoder_decoder(path: Path) -> bool:
    """Whether a folder holds an encoder and a decoder."""
    return (path / ENCODER).is_file() and (path / DECODER).is_file()


class EncoderDecoder:
    """A folder with both graphs, and with the config.json of their source."""

    def __init__(self, folder: Path, target: Target, trust_remote_code: bool = False, *, is_timed: bool = False):
        self.folder, self.trust_remote_code = folder, trust_remote_code
        self._encoder = Session(folder / ENCODER, target, is_timed=is_timed)
        self._decoder = Session(folder / DECODER, target, is_timed=is_timed)
        self.inputs = list(self._encoder.inputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``logits [samples, tokens, vocabulary]`` behind each of ``decoder_input_ids``, which go in one by one, as in
        generation."""
        if "decoder_input_ids" not in inputs:
            raise ColdpressError(
                f"{self.folder} has an encoder and a decoder; the data gives no 'decoder_input_ids' for the latter",
                hint="use data with both, or let the model speak (accuracy: task speech or generation)",
            )
        past, logits = self.completed(self.encoded(inputs), inputs.get("attention_mask")), []
        for token in inputs["decoder_input_ids"].T:
            found, past = self.after(token[:, None], past)
            logits.append(found)
        return {"logits": np.concatenate(logits, axis=1)}

    def step(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        return lambda: self.run(inputs)

    def encoded(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The hidden states of the encoder, and the keys and values that the decoder needs of them."""
        return self._encoder.run({name: array for name, array in inputs.items() if name in self.inputs})

    def completed(self, past: Mapping[str, Any], mask: np.ndarray | None = None) -> dict[str, Any]:
        """What the decoder takes beside a token: of ``past`` what it has a place for, and what is lacking before the
        first token, a cache of none."""
        samples, length = (
            next(one for name, one in past.items() if ".encoder." in name).shape[axis] for axis in (0, 2)
        )
        found: dict[str, Any] = {}
        for name, wanted in self._decoder.inputs.items():
            if name in past:
                found[name] = past[name]
            elif wanted.is_cache:
                found[name] = empty_cache(name, wanted.kind, wanted.shape, {}, samples)
            elif name == MASK:
                found[name] = np.ones((samples, length), np.int64) if mask is None else mask
        return found

    def after(self, tokens: np.ndarray, past: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Logits behind ``tokens [samples, tokens]``, and what is past then."""
        found = self._decoder.outputs_for({"input_ids": tokens.astype(np.int64), **past})
        logits = np.asarray(found.pop("logits"), np.float32)
        return logits, {**past, **{name.replace(_PRESENT, _PAST, 1): array for name, array in found.items()}}

    def generate(
        self,
        inputs: Mapping[str, np.ndarray],
        max_new_tokens: int,
        stop: Callable[[list[int]], bool] = lambda tokens: False,
    ) -> list[int]:
        """The greedy answer to one sample, as of `TorchModel.generate`."""
        import torch

        from coldpress.networks.torch_model import greedy

        given = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.inputs if name in inputs}
        return greedy(self.speaker, given, max_new_tokens, stop)

    @functools.cached_property
    def speaker(self) -> Any:
        """transformers' model, with its ``generate`` and without its weights: its layers are these graphs."""
        return _speaker(self)


def _speaker(graphs: EncoderDecoder) -> Any:
    import torch
    from transformers import GenerationConfig
    from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

    from coldpress.networks.empty import network_of

    network = network_of(graphs.folder, "float32", graphs.trust_remote_code)
    if (graphs.folder / "generation_config.json").is_file():
        network.generation_config = GenerationConfig.from_pretrained(graphs.folder)

    class Encoder(torch.nn.Module):
        """Gives what the decoder needs beside the hidden states, so that beams are copies of all."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(graphs.inputs, args, strict=False)), **kwargs}
            found = graphs.encoded({name: given[name].numpy() for name in graphs.inputs if given.get(name) is not None})
            output = BaseModelOutput(last_hidden_state=torch.from_numpy(found.pop(HIDDEN)))
            for name, array in found.items():
                if ".encoder." in name:
                    output[name] = torch.from_numpy(array)
            return output

    @functools.wraps(network.forward)
    def forward(**given: Any) -> Any:
        encoded = given.get("encoder_outputs") or Encoder()(**given)
        mask = given.get("attention_mask")
        cache = given.get("past_key_values")
        past = {name: value.numpy() for name, value in encoded.items() if name != HIDDEN} | _of_cache(cache)
        if mask is not None:
            past[MASK] = mask.numpy()
        logits, present = graphs.after(given["decoder_input_ids"].numpy(), graphs.completed(past))
        if cache is not None:
            _fill(cache, present)
        return Seq2SeqLMOutput(logits=torch.from_numpy(logits), past_key_values=cache)

    encoder = Encoder()
    network.get_encoder, network.forward = lambda *args, **kwargs: encoder, forward
    return network


def _of_cache(cache: Any) -> dict[str, np.ndarray]:
    """What transformers' cache of an encoder-decoder holds, by the names of the graphs."""
    if cache is None:
        return {}
    return {
        f"{_PAST}{layer}.{side}.{kind}": tensor.numpy()
        for side, part in (("decoder", cache.self_attention_cache), ("encoder", cache.cross_attention_cache))
        for layer, one in enumerate(part.layers)
        for kind, tensor in (("key", one.keys), ("value", one.values))
        if tensor is not None
    }


def _fill(cache: Any, present: Mapping[str, Any]) -> None:
    import torch

    for side, part in (("decoder", cache.self_attention_cache), ("encoder", cache.cross_attention_cache)):
        for layer in range(sum(name.endswith(f".{side}.key") for name in present)):
            keys, values = (torch.from_numpy(present[f"{_PAST}{layer}.{side}.{kind}"]) for kind in ("key", "value"))
            if layer < len(part.layers) and part.layers[layer].keys is not None:
                part.layers[layer].keys, part.layers[layer].values = keys, values
            else:
                part.update(keys, values, layer)
