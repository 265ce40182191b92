"""How much what a linear layer gives for a token matters for the answers of the network.

An error in an output changes the answers, to second order, by the error times the Fisher matrix of the output. Of that
only the mean of the diagonal is kept, for each token: the squared gradient of the log-likelihood of an answer that is
drawn from the network's own. A Gram matrix of tokens weighted so tells what an error does in the end, not only behind
the layer (GuidedQuant, https://arxiv.org/abs/2505.07004, has one for each of some groups of channels). One step forward
and back through the float network gives it, a layer in memory at a time, beside the inputs of all layers for the
windows of one batch.

These squares are noisy, as each token draws once, and few tokens have most of the sum. Their root serves better on
other text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coldpress.networks.differentiable import Differentiable
from coldpress.networks.layerwise import Layerwise, states_file, tensor_of
from coldpress.quant.grid import Floats

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, float, float], None]
#: the first of the modules that share an input -> how much each token counts, float32 ``[windows * tokens]``, one on
#: average
Saliency = Mapping[str, Floats]

#: tokens that go through all layers before they come back
_TOKENS_AT_ONCE = 1024
#: logits that exist at once
_LOGITS_AT_ONCE = 1 << 24
_TEMPER = 0.5


def saliency(decoder: Layerwise, folder: Path, progress: Progress) -> Saliency:
    """For all windows of a decoder without experts; what is in ``folder`` already is not found again."""
    from safetensors.numpy import load_file, save_file

    file = folder / "saliency.safetensors"
    if not file.is_file():
        found = _found(Differentiable.of(decoder, decoder.folder, decoder.ids), folder, progress)
        save_file(found, folder / "saliency.part")
        os.replace(folder / "saliency.part", file)
    return load_file(file)


def _found(decoder: Differentiable, folder: Path, progress: Progress) -> dict[str, Floats]:
    size = max(1, _TOKENS_AT_ONCE // decoder.ids.shape[1])
    states = states_file(folder / "embedded.npy", decoder)
    decoder.embed(states)
    head = decoder.head(folder / "head.part")
    found: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(decoder.ids), size):
        progress("weighing tokens", start, len(decoder.ids))
        given = tensor_of(np.array(states[start : start + size])).to(decoder.device)
        for module, squares in _there_and_back(decoder, given, head, start):
            found.setdefault(module, np.zeros(decoder.ids.size, np.float32))[_places(decoder, start, squares)] = squares
    del states, given, head
    for scratch in ("embedded.npy", "head.part"):
        (folder / scratch).unlink(missing_ok=True)
    return {module: _tempered(squares) for module, squares in found.items()}


def _places(decoder: Differentiable, start: int, squares: Floats) -> slice:
    first = start * decoder.ids.shape[1]
    return slice(first, first + len(squares))


def _tempered(squares: Floats) -> Floats:
    roots: Floats = (squares / max(float(squares.mean()), float(np.finfo(np.float32).tiny))) ** np.float32(_TEMPER)
    mean = float(roots.mean())
    return roots / np.float32(mean) if mean > 0 else np.ones_like(roots)


def _there_and_back(
    decoder: Differentiable, given: torch.Tensor, head: torch.Tensor, seed: int
) -> Iterator[tuple[str, Floats]]:
    """The squared gradients of each group of modules with one input, ``[tokens]``, the last layer first."""
    import torch

    inputs = [given]
    with torch.no_grad():
        for layer in decoder.layers:
            inputs.append(decoder.applied(layer, _leaves(decoder, layer), inputs[-1]))
    slope = _drawn(decoder, inputs.pop(), head, seed)
    for layer in reversed(decoder.layers):
        given = inputs.pop().requires_grad_()
        with _outputs(decoder.linears(layer)) as seen:
            found = decoder.applied(layer, _leaves(decoder, layer), given)
        slope, *slopes = decoder.slopes(found, [given, *seen.outputs], slope)
        yield from seen.squares(slopes).items()


def _leaves(decoder: Differentiable, layer: str) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(value).to(decoder.like) for name, value in decoder.weights(layer).items()}


def _drawn(decoder: Differentiable, outputs: torch.Tensor, head: torch.Tensor, seed: int) -> torch.Tensor:
    """The gradient, at outputs of the last layer, of how unlikely an answer is that is drawn for each token."""
    import torch

    flat, slope = outputs.flatten(0, 1), torch.empty_like(outputs).flatten(0, 1)
    size, chance = max(1, _LOGITS_AT_ONCE // len(head)), torch.Generator(flat.device).manual_seed(seed)
    for start in range(0, len(flat), size):
        part = flat[start : start + size].detach().requires_grad_()
        logits = decoder.head_logits(part, head)
        missed = logits.detach().float().softmax(-1)
        answers = torch.multinomial(missed, 1, generator=chance)
        missed.scatter_add_(1, answers, torch.full_like(answers, -1, dtype=missed.dtype))
        (slope[start : start + size],) = decoder.slopes(logits, [part], missed.to(logits.dtype))
    return slope.view_as(outputs)


@dataclass
class _Seen:
    """Inputs and outputs of linear modules, in the order in which they ran."""

    modules: list[str] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)

    def note(self, module: str, given: torch.Tensor, output: torch.Tensor) -> None:
        self.modules.append(module)
        self.inputs.append(given)
        self.outputs.append(output)

    def squares(self, slopes: list[torch.Tensor]) -> dict[str, Floats]:
        """By the first module with an input, of all that share it."""
        found: dict[str, Floats] = {}
        leaders: list[tuple[torch.Tensor, str]] = []
        for module, given, slope in zip(self.modules, self.inputs, slopes, strict=True):
            leader = next((name for tensor, name in leaders if tensor is given), module)
            leaders.append((given, leader))
            squares = slope.float().square_().sum(-1).flatten().cpu().numpy()
            found[leader] = found[leader] + squares if leader in found else squares
        return found


@contextmanager
def _outputs(modules: Mapping[str, Any]) -> Iterator[_Seen]:
    """Note what linear modules are given and give."""
    seen = _Seen()

    def hook(name: str) -> Callable[[Any, Any, Any], None]:
        return lambda _module, args, output: seen.note(name, args[0], output)

    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()
