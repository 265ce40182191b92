"""A decoder run layer by layer, with gradients: of what a layer gives, and of the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coldpress.networks.layerwise import Layerwise, cast, constant

if TYPE_CHECKING:
    import torch


class Differentiable(Layerwise):
    """A `Layerwise` for which somebody else keeps what is between the layers. It has no mixtures of experts."""

    @classmethod
    def of(cls, decoder: Layerwise, folder: Path, ids: NDArray[np.int64]) -> Differentiable:
        """One that works as a decoder does, for another folder or other windows."""
        found = cls(
            folder,
            ids,
            batch=decoder.batch,
            device=decoder.device,
            scratch=decoder._scratch,
            trust_remote_code=decoder._trusted,
        )
        found.in_bfloat16 = decoder.in_bfloat16
        return found

    def applied(self, layer: str, weights: Mapping[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """What a layer with these weights makes of ``states [windows, tokens, width]``, with gradients of both."""
        from torch.func import functional_call

        found = self._layers[layer]
        call = self._call(len(states), list(self._layers).index(layer))
        to_like = partial(cast, states.dtype)
        own = {local: weights[name] for name, local in found.names.items()}
        with self._in_parts():
            given = functional_call(found.module, own, (states, *to_like(call.args)), to_like(call.kwargs))
        output: torch.Tensor = given[0] if isinstance(given, tuple) else given
        return output

    def slopes(
        self, output: torch.Tensor, places: Sequence[torch.Tensor], slope: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The gradients at places before an ``output``, where that at the output is ``slope``."""
        import torch

        with self._in_parts():
            return torch.autograd.grad(output, places, slope)

    def head(self, file: Path) -> torch.Tensor:
        """The head's weight as layers work with it; of the processor's memory none, but in a mapped ``file``."""
        import torch

        stored, like = self._shards.tensor(self._key(self._weight_of(self._model.get_output_embeddings()))), self.like
        if like.device.type != "cpu":
            return stored.to(like)
        found = torch.from_file(str(file), shared=True, size=stored.numel(), dtype=like.dtype)
        return found.copy_(stored.flatten()).view(stored.shape)

    def head_logits(self, states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """The logits ``[places, vocabulary]`` for outputs ``[places, width]`` of the last layer, with their gradient.

        ``head``: the head's weight, in any type; products are done in it.
        """
        import torch

        own, last = self._model.get_output_embeddings(), partial(constant, states[None])
        stand_in = torch.nn.Module()
        stand_in.forward = lambda inputs: torch.nn.functional.linear(inputs.to(head.dtype), head, own.bias)
        self._model.set_output_embeddings(stand_in)
        try:
            with self._layers_as(last):
                found: torch.Tensor = self._model(input_ids=self._tokens(1)[:, :1], use_cache=False).logits[0]
        finally:
            self._model.set_output_embeddings(own)
        return found
