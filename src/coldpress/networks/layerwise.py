"""A Hugging Face decoder run layer by layer, all windows through one layer before the next: one layer's weights in
memory.

The model is built with its parameters on ``meta``. Its own forward runs once with layers that only note how they are
called, so masks, positions and whatever else a network gives each of its layers are its own. Then each layer runs
alone, on batches of windows, with weights that were read for it, changed or not; its outputs are the inputs of the
next. The experts of a layer take turns (`experts.Turns`): one at a time is in memory, and works on its tokens of all
batches.

Layers, modules and parameters have the names that they have in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.networks.attention import attend_in_blocks
from coldpress.networks.decoder_layer import DecoderLayer, Watcher, in_parts, loaded, running_as
from coldpress.networks.empty import empty_model, layer_names, tied_names
from coldpress.networks.on_demand import load_while_running
from coldpress.networks.routers import is_router
from coldpress.networks.shards import Shards
from coldpress.networks.weights import Weights
from coldpress.quant.grid import Floats

if TYPE_CHECKING:
    import torch

#: hidden states ``[windows, tokens, width]``: float32, or bfloat16 as its bits in int16, which numpy has no name for
States = NDArray[Any]
#: what a calibration takes whatever the model: torch, transformers, the tokenizer
_BASE_BYTES = 400_000_000
_NOBODY = Watcher()
#: tokens that run through a layer at once, by the kind of device
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}


@dataclass
class _Call:
    """What a network gives a layer besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Layerwise:
    """The decoder layers of a folder, to be run one at a time on windows of token ids ``[windows, tokens]``.

    ``layers``: their names, such as ``model.layers.0``. ``batch``: windows that run at once. The weights are float32
    and the work is done on ``device``; with ``in_bfloat16`` `run` casts them and all that a layer works with. What
    passes to experts and back lies in files in ``scratch``, in the system's folder for such without. Code from the
    folder runs only with ``trust_remote_code``.
    """

    def __init__(
        self,
        folder: Path,
        ids: NDArray[np.int64],
        *,
        batch: int = 4,
        device: str = "cpu",
        scratch: Path | None = None,
        trust_remote_code: bool = False,
    ):
        self.folder, self.ids, self.batch, self.device = Path(folder), ids, batch, device
        self.in_bfloat16 = False
        self._scratch, self._trusted, self._shards = scratch, trust_remote_code, Shards(self.folder)
        self._model, found = empty_model(self.folder, self._shards, trust_remote_code)
        if found is None:
            raise _refusal(self._model, self.folder, "transformers computes some of them from several stored tensors")
        attend_in_blocks(self._model)
        self._stored, self._tied = found, tied_names(self._model)
        self._layers = dict(map(self._layer, layer_names(self._model)))
        self._prepare_ends()
        self._calls: dict[int, list[_Call]] = {}

    def _layer(self, name: str) -> tuple[str, DecoderLayer]:
        from coldpress.networks.experts import Experts, is_fused

        module = self._model.get_submodule(name)
        if any(is_fused(inside) for inside in module.modules()):
            raise _refusal(self._model, self.folder, "one tensor holds the matrices of all experts of a layer")
        names = {self._key(f"{name}.{local}"): local for local, _ in module.named_parameters()}
        stored = next((key.removesuffix(f".{local}") for key, local in names.items() if key.endswith(local)), name)
        mixtures = [inside for inside in module.modules() if isinstance(inside, Experts)]
        return stored, DecoderLayer(name, module, names, mixtures[0] if len(mixtures) == 1 else None)

    @property
    def layers(self) -> list[str]:
        return list(self._layers)

    @property
    def config(self) -> Any:
        return self._model.config

    @property
    def width(self) -> int:
        return int(self._model.get_input_embeddings().embedding_dim)

    @property
    def embedding(self) -> str:
        """The name of the token embedding."""
        return self._key(self._weight_of(self._model.get_input_embeddings())).removesuffix(".weight")

    @property
    def is_tied(self) -> bool:
        """Whether head and embedding are one matrix."""
        head = self._weight_of(self._model.get_output_embeddings())
        return self._stored.get(head) is None or head in self._tied

    def _weight_of(self, module: Any) -> str:
        """The name of a module's weight in the model."""
        return next(f"{name}.weight" for name, other in self._model.named_modules() if other is module)

    def _key(self, parameter: str) -> str:
        """The name in the checkpoint of a parameter of the model; of one that is tied, the other's."""
        return self._stored.get(parameter) or self._stored[self._tied[parameter]]

    @cached_property
    def dtype(self) -> str:
        """The float type of the checkpoint: float32, float16 or bfloat16."""
        kinds = {str(self._shards.dtype(key)) for key in self._stored.values()}
        return next((kind for kind in ("bfloat16", "float16") if kind in kinds), "float32")

    @property
    def parameters(self) -> int:
        """The number of weights, tied ones once."""
        return sum(math.prod(self._shards.shape(key)) for key in set(self._stored.values()))

    @property
    def rotary_bytes(self) -> int:
        """The tables of sines and cosines in a graph, float32, for each kind of layer that has its own."""
        config = self.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kinds = len(set(getattr(config, "layer_types", None) or [""]))
        return 4 * int(getattr(config, "max_position_embeddings", 0)) * int(size) * kinds

    def shape(self, name: str) -> tuple[int, int]:
        rows, columns = self._shards.shape(name)
        return rows, columns

    def windows_at_once(self, max_memory: float | None) -> int:
        """Windows that may run at once in ``max_memory`` gigabytes; two thousand tokens on a CPU, where more are no
        faster."""
        tokens = self.ids.shape[1]
        usual = max(1, _TOKENS_AT_ONCE[self.device] // tokens)
        if max_memory is None:
            return usual
        fixed, window = self.memory(tokens)
        fits = int((max_memory * 1e9 - fixed) // window)
        if fits < 1:
            raise ColdpressError(
                f"max_memory {max_memory:g} GB is too little for one layer and one window of {tokens} tokens",
                hint=f"use --max_memory {(fixed + window) / 1e9 + 0.05:.1f}, or a shorter --max_seq_len",
            )
        return min(usual, fits)

    def memory(self, tokens: int) -> tuple[int, int]:
        """Bytes that a calibration takes, roughly: whatever the windows, and for each window of ``tokens`` in a
        batch."""
        layers = [layer.memory() for layer in self._layers.values()]
        return _BASE_BYTES + max(fixed for fixed, _ in layers), tokens * max(each for _, each in layers)

    def linears(self, layer: str) -> dict[str, Any]:
        """The linear modules of a layer by their names, without those that route."""
        return self._layers[layer].linears()

    def routers(self, layer: str) -> list[str]:
        """The names of a layer's modules that decide where a token goes."""
        names = [name.removesuffix(".weight") for name in self._layers[layer].names]
        return [name for name in names if is_router(name)]

    def experts(self, layer: str) -> list[tuple[str, ...]]:
        """The names of gate, up and down of each expert of a layer."""
        return [tuple(name.removesuffix(".weight") for name in own) for own in self._layers[layer].of_experts]

    def weights(self, layer: str) -> Weights:
        """The parameters of a layer."""
        return Weights(self._layers[layer].names, self._read)

    def held(self, layer: str) -> Weights:
        """The parameters of a layer, those that are no expert's read once and for all."""
        return self.weights(layer).held(self._layers[layer].of_all)

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor in float32."""
        return self._shards.tensor(name).to(self.device).float()

    def _read(self, name: str) -> Floats:
        found: Floats = self._shards.tensor(name).float().numpy()
        return found

    def head_weight(self) -> torch.Tensor:
        """What gives the logits, ``[vocabulary, width]``; the embedding where the two are tied."""
        return self.tensor(self._key(self._weight_of(self._model.get_output_embeddings())))

    def embedding_weight(self) -> torch.Tensor:
        """The token embedding, ``[vocabulary, width]``."""
        return self.tensor(f"{self.embedding}.weight")

    def embed(self, states: States) -> None:
        """Write the inputs of the first layer, and note how the layers are called."""
        import torch

        for part in self._batches():
            seen: list[torch.Tensor] = []
            calls: list[_Call] = []
            self._calls[part.stop - part.start] = calls
            with torch.no_grad(), self._in_parts(), self._layers_as(_recorder(seen, calls)):
                self._body()(input_ids=self._tokens(part), use_cache=False)
            _put(states, part, seen[0])

    def run(
        self, layer: str, weights: Mapping[str, Floats], states: States, after: States, watcher: Watcher = _NOBODY
    ) -> None:
        """Run a layer with these weights on all windows: from ``states`` to ``after``, which may be the same array."""
        import torch

        found = self._layers[layer]
        with torch.inference_mode(), self._in_parts(), loaded(found.module, found.of_all, weights, self.like):
            if found.experts is not None:
                self._take_turns(found, weights, states, after, watcher)
                return
            with found.watched(watcher):
                for part in self._batches(len(states)):
                    _put(after, part, self._outputs(found, states, part))
                    watcher.ran(part.stop)

    def _take_turns(
        self, layer: DecoderLayer, weights: Mapping[str, Floats], states: States, after: States, watcher: Watcher
    ) -> None:
        """As `run`, for a layer with experts."""
        from coldpress.networks.experts import Reached, Turns

        experts, (windows, tokens) = layer.experts, states.shape[:2]
        turns = Turns(experts, windows * tokens, self._scratch)
        with layer.watched(watcher, unless=lambda: turns.repeats):
            with running_as([experts], turns.note):
                for part in self._batches(windows):
                    with suppress(Reached):
                        self._outputs(layer, states, part)
            for place in turns.reached():
                own = layer.of_experts[place]
                with loaded(experts.get_submodule(str(place)), own, weights, self.like):
                    turns.turn(place, self.batch * tokens, self.like)
                watcher.left([name.removesuffix(".weight") for name in own])
                watcher.ran(windows * (place + 1) / len(layer.of_experts))
            with running_as([experts], turns.give):
                for part in self._batches(windows):
                    turns.repeats = True
                    _put(after, part, self._outputs(layer, states, part))

    def _outputs(self, layer: DecoderLayer, states: States, part: slice) -> torch.Tensor:
        """What a layer makes of a part of the windows."""
        call = self._call(part.stop - part.start, list(self._layers.values()).index(layer))
        to_like = partial(cast, self.like.dtype)
        found = layer.module(to_like(self._states(states, part)), *to_like(call.args), **to_like(call.kwargs))
        output: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return output

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the kind that layers work with, on the device."""
        import torch

        return torch.empty(0, dtype=torch.bfloat16 if self.in_bfloat16 else torch.float32, device=self.device)

    def outputs(self, states: States) -> Iterator[tuple[slice, torch.Tensor]]:
        """Batch by batch what the head reads, ``[windows, tokens, width]``, from the outputs of the last layer."""
        import torch

        for part in self._batches():
            last = partial(constant, self._states(states, part))
            with torch.inference_mode(), self._in_parts(), self._layers_as(last):
                found = self._body()(input_ids=self._tokens(part), use_cache=False).last_hidden_state
            yield part, found

    def logits(self, states: States, head: torch.Tensor | None = None) -> torch.Tensor:
        """The logits ``[windows, tokens, vocabulary]`` for outputs of the last layer; ``head``: weights in place of its
        own."""
        import torch

        module, last = self._model.get_output_embeddings(), partial(constant, tensor_of(states).to(self.device))
        if head is not None:
            module.forward = lambda inputs: torch.nn.functional.linear(inputs, head, module.bias)
        try:
            with torch.inference_mode(), self._layers_as(last):
                found: torch.Tensor = self._model(input_ids=self._tokens(len(states)), use_cache=False).logits
        finally:
            module.__dict__.pop("forward", None)
        return found

    def _call(self, size: int, place: int) -> _Call:
        """How a layer is called for ``size`` windows; what the tokens are does not matter."""
        if size not in self._calls:
            self._calls[size] = []
            with self._layers_as(_recorder([], self._calls[size])):
                self._body()(input_ids=self._tokens(size), use_cache=False)
        return self._calls[size][place]

    def _batches(self, count: int | None = None) -> Iterator[slice]:
        end = len(self.ids) if count is None else count
        for start in range(0, end, self.batch):
            yield slice(start, min(start + self.batch, end))

    def _tokens(self, part: slice | int) -> torch.Tensor:
        """The ids of a part, or of the first window so many times."""
        import torch

        ids = self.ids[part] if isinstance(part, slice) else np.repeat(self.ids[:1], part, axis=0)
        return torch.as_tensor(ids).to(self.device)

    def _states(self, states: States, part: slice) -> torch.Tensor:
        return tensor_of(np.array(states[part])).to(self.device)

    def _body(self) -> Any:
        body = getattr(self._model, self._model.base_model_prefix or " ", None)
        return self._model if body is None else body

    def _prepare_ends(self) -> None:
        """Let the embedding, the last norm and whatever else is no layer read its weights when it runs."""
        inside = tuple(f"{layer.path}." for layer in self._layers.values())
        for path, module in self._model.named_modules():
            if f"{path}.".startswith(inside):
                continue
            own = [local for local, parameter in module._parameters.items() if parameter is not None]
            keys = {local: self._key(f"{path}.{local}" if path else local) for local in own}
            if keys:
                load_while_running(module, self._shards, keys)
        for name, buffer in self._model.named_buffers():
            if name in self._stored:
                buffer.copy_(self._shards.tensor(self._stored[name]))

    def _in_parts(self) -> AbstractContextManager[None]:
        return in_parts(self._model, self.folder)

    def _layers_as(self, forward: Callable[..., Any]) -> AbstractContextManager[None]:
        return running_as([layer.module for layer in self._layers.values()], forward)


def _refusal(model: Any, folder: Path, why: str) -> ColdpressError:
    return ColdpressError(
        f"the weights of {type(model).__name__} in {folder} cannot be read layer by layer: {why}",
        hint="quantize it with `auto-opt --algorithm kquant`, which needs no data",
    )


def cast(dtype: torch.dtype, value: Any) -> Any:
    """The float tensors in a value, a tuple or a mapping as ``dtype``; all else as it is."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(cast(dtype, item) for item in value)
    if isinstance(value, dict):
        return {key: cast(dtype, item) for key, item in value.items()}
    return value


def constant(value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The forward of a layer that gives what is known already."""
    return value


def _recorder(seen: list[torch.Tensor], calls: list[_Call]) -> Callable[..., Any]:
    """The forward of a layer that notes how it is called and gives its input back."""

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not calls:
            seen.append(hidden_states)
        calls.append(_Call(args, kwargs))
        return hidden_states

    return forward


def tensor_of(states: States) -> torch.Tensor:
    """Hidden states as torch knows them, the same memory."""
    import torch

    tensor = torch.from_numpy(states)
    return tensor.view(torch.bfloat16) if states.dtype == np.int16 else tensor


def _put(states: States, part: slice, found: torch.Tensor) -> None:
    import torch

    if states.dtype == np.int16:
        states[part] = found.to(torch.bfloat16).view(torch.int16).cpu().numpy()
    else:
        states[part] = found.float().cpu().numpy()


def states_file(file: Path, decoder: Layerwise) -> States:
    """A mapped file for the hidden states of all windows."""
    kind = np.int16 if decoder.in_bfloat16 else np.float32
    return np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=(*decoder.ids.shape, decoder.width))
