"""A Hugging Face decoder run layer by layer, all windows through one layer before the next: one layer's weights in memory.

The model is built with its parameters on ``meta``. Its own forward runs once with layers that only note how they are
called, so masks, positions and whatever else a network gives each of its layers are its own. Then each layer runs alone,
on batches of windows, with weights that were read for it, changed or not; its outputs are the inputs of the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.networks.reference import (
    _empty_model,
    _load_while_running,
    _Shards,
    _stored_names,
    _tied_names,
)

if TYPE_CHECKING:
    import torch

#: tokens that run through a layer at once, by the kind of device
_TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 8192}
#: hidden states ``[windows, tokens, width]``
States = NDArray[np.float32]
Tensors = dict[str, "torch.Tensor"]


@dataclass
class _Call:
    """What a network gives a layer besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Layerwise:
    """The decoder layers of a folder, to be run one at a time on windows of token ids ``[windows, tokens]``.

    ``layers``: their names, such as ``model.layers.0``. ``batch``: windows that run at once. The weights are float32 and
    the work is done on ``device``. Code from the folder runs only with ``trust_remote_code``.
    """

    def __init__(
        self,
        folder: Path,
        ids: NDArray[np.int64],
        *,
        batch: int = 4,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ):
        self.folder, self.ids, self.batch, self.device = Path(folder), ids, batch, device
        self._shards = _Shards(self.folder)
        self._model = _empty_model(self.folder, trust_remote_code)
        found = _stored_names(self._model, self._shards)
        if found is None:
            raise ColdpressError(
                f"the weights of {type(self._model).__name__} in {self.folder} cannot be read layer by layer: transformers "
                "computes some of them from several stored tensors",
                hint="quantize it with `auto-opt --algorithm kquant`, which needs no data",
            )
        self._stored, self._tied = found, _tied_names(self._model)
        modules = dict(self._model.named_modules())
        self.layers = _layer_names(self._model)
        self._modules = {name: modules[name] for name in self.layers}
        self._prepare_ends()
        self._calls: dict[int, list[_Call]] = {}

    @property
    def config(self) -> Any:
        return self._model.config

    @property
    def width(self) -> int:
        return int(self._model.get_input_embeddings().embedding_dim)

    @property
    def embedding(self) -> str:
        """The name of the token embedding."""
        return self._name(self._model.get_input_embeddings())

    @property
    def is_tied(self) -> bool:
        """Whether head and embedding are one matrix."""
        head = f"{self._name(self._model.get_output_embeddings())}.weight"
        return self._stored.get(head) is None or head in self._tied

    def _name(self, module: Any) -> str:
        return next(name for name, other in self._model.named_modules() if other is module)

    @property
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
        rows, columns = self._shards.shape(self._stored.get(name) or self._stored[self._tied[name]])
        return rows, columns

    def windows_at_once(self, max_memory: float | None) -> int:
        """Windows that may run at once in ``max_memory`` gigabytes; a thousand tokens on a CPU where more is no faster."""
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
        """Bytes that a calibration takes, roughly: whatever the windows, and for each window of ``tokens`` in a batch."""
        layer = self.layers[0]
        shapes = [parameter.shape for parameter in self._modules[layer].parameters()]
        weights = sum(shape.numel() for shape in shapes) * 4
        grams = sum(4 * size * size for size in {module.in_features for module in self.linears(layer).values()}) * 3
        widths = sum(max(shape) for shape in shapes if len(shape) == 2)
        return 400_000_000 + weights * 3 // 2 + grams, tokens * 4 * 4 * widths

    def linears(self, layer: str) -> dict[str, Any]:
        """The linear modules of a layer by their full names."""
        from torch import nn

        inside = self._modules[layer].named_modules()
        return {f"{layer}.{name}": module for name, module in inside if isinstance(module, nn.Linear)}

    def weights(self, layer: str) -> Tensors:
        """The parameters of a layer in float32, by their full names."""
        names = [f"{layer}.{name}" for name, _ in self._modules[layer].named_parameters()]
        return {name: self.tensor(name) for name in names}

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter in float32; one that is tied is the other's."""
        key = self._stored.get(name) or self._stored[self._tied[name]]
        return self._shards.tensor(key).to(self.device).float()

    def head_weight(self) -> torch.Tensor:
        """What gives the logits, ``[vocabulary, width]``; the embedding where the two are tied."""
        return self.tensor(f"{self._name(self._model.get_output_embeddings())}.weight")

    def embed(self, states: States) -> None:
        """Write the inputs of the first layer, and note how the layers are called."""
        import torch

        for part in self._batches():
            seen: list[torch.Tensor] = []
            calls: list[_Call] = []
            self._calls[part.stop - part.start] = calls
            with torch.inference_mode(), self._layers_replaced(_recorder(seen, calls)):
                self._body()(input_ids=self._tokens(part), use_cache=False)
            _put(states, part, seen[0])

    def run(
        self,
        layer: str,
        weights: Tensors,
        states: States,
        after: States,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Run a layer with these weights on all windows: from ``states`` to ``after``, which may be the same array."""
        import torch

        module, place, count = self._modules[layer], self.layers.index(layer), len(states)
        with torch.inference_mode(), _loaded(module, {name[len(layer) + 1 :]: one for name, one in weights.items()}):
            for part in self._batches(count):
                call = self._call(part.stop - part.start, place)
                found = module(self._states(states, part), *call.args, **call.kwargs)
                _put(after, part, found[0] if isinstance(found, tuple) else found)
                progress(part.stop)

    def outputs(self, states: States) -> Iterator[tuple[slice, torch.Tensor]]:
        """Batch by batch what the head reads, ``[windows, tokens, width]``, from the outputs of the last layer."""
        import torch

        for part in self._batches():
            last = partial(_constant, self._states(states, part))
            with torch.inference_mode(), self._layers_replaced(last):
                yield part, self._body()(input_ids=self._tokens(part), use_cache=False).last_hidden_state

    def logits(self, states: States, head: torch.Tensor | None = None) -> torch.Tensor:
        """The logits ``[windows, tokens, vocabulary]`` for outputs of the last layer; ``head``: weights in place of its own."""
        import torch

        module, last = self._model.get_output_embeddings(), partial(_constant, torch.from_numpy(states).to(self.device))
        if head is not None:
            module.forward = lambda inputs: torch.nn.functional.linear(inputs, head, module.bias)
        try:
            with torch.inference_mode(), self._layers_replaced(last):
                found: torch.Tensor = self._model(input_ids=self._tokens(len(states)), use_cache=False).logits
        finally:
            module.__dict__.pop("forward", None)
        return found

    def _call(self, size: int, place: int) -> _Call:
        """How a layer is called for ``size`` windows; what the tokens are does not matter."""
        if size not in self._calls:
            self._calls[size] = []
            with self._layers_replaced(_recorder([], self._calls[size])):
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
        import torch

        return torch.from_numpy(np.array(states[part])).to(self.device)

    def _body(self) -> Any:
        body = getattr(self._model, self._model.base_model_prefix or " ", None)
        return self._model if body is None else body

    def _prepare_ends(self) -> None:
        """Let the embedding, the last norm and whatever else is no layer read its weights when it runs."""
        inside = tuple(f"{name}." for name in self.layers)
        for path, module in self._model.named_modules():
            if path in self._modules or path.startswith(inside):
                continue
            own = [local for local, parameter in module._parameters.items() if parameter is not None]
            names = {local: f"{path}.{local}" if path else local for local in own}
            keys = {local: self._stored.get(name) or self._stored[self._tied[name]] for local, name in names.items()}
            if keys:
                _load_while_running(module, self._shards, keys)
        for name, buffer in self._model.named_buffers():
            if name in self._stored:
                buffer.copy_(self._shards.tensor(self._stored[name]))

    @contextmanager
    def _layers_replaced(self, forward: Callable[..., Any]) -> Iterator[None]:
        for module in self._modules.values():
            module.forward = forward
        try:
            yield
        finally:
            for module in self._modules.values():
                del module.forward


def _layer_names(model: Any) -> list[str]:
    """The names of the decoder layers: the members of the list of modules that holds most parameters."""
    from torch import nn

    def weights(item: tuple[str, Any]) -> int:
        return sum(parameter.numel() for parameter in item[1].parameters())

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ColdpressError(f"{type(model).__name__} has no list of layers, so it cannot be calibrated layer by layer")
    name, layers = max(lists, key=weights)
    return [f"{name}.{place}" for place in range(len(layers))]


def _constant(value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
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


@contextmanager
def _loaded(module: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give a module real parameters; those on ``meta`` come back afterwards."""
    from torch import nn

    empty = {}
    for name, tensor in tensors.items():
        parent, _, local = name.rpartition(".")
        owner = module.get_submodule(parent)
        empty[name] = owner._parameters[local]
        owner._parameters[local] = nn.Parameter(tensor, requires_grad=False)
    try:
        yield
    finally:
        for name, parameter in empty.items():
            parent, _, local = name.rpartition(".")
            module.get_submodule(parent)._parameters[local] = parameter


def _put(states: States, part: slice, found: torch.Tensor) -> None:
    states[part] = found.float().cpu().numpy()
