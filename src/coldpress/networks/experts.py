"""Mixtures of experts with one module for each expert, as checkpoints store them.

Since version 5 transformers holds the experts of a layer in two tensors for all of them and joins the stored matrices
when it loads. Here every stored matrix is the weight of a linear module again, under the name it has in the checkpoint:
it is read alone, when a token comes to its expert; what comes to it can be watched; its codes are found by its name.

What an expert computes is what its class declares to transformers' own kernels (``use_experts_implementation``): how
the tensors lie and how gate and up are put together. Where each matrix is stored is learned from how transformers
saves: it saves tensors that hold a number for each expert and part, and the names under which these numbers come out
are the answer. Experts that declare something else (biases, transposed or interleaved weights), or that the checkpoint
has as one tensor, stay as they are.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

#: what a class declares -> what it must say for the arithmetic of `Expert`
_DECLARED = {
    "is_concatenated": True,
    "is_transposed": False,
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
}
_FUSED = ("gate_up_proj", "down_proj")
_PARTS = 3

#: the last parts of the names of an expert's gate, up and down projections
Leaves = tuple[str, str, str]


class Expert(nn.Module):
    """``down(combine([gate(x), up(x)]))``, its parameters on ``meta``."""

    def __init__(self, leaves: Leaves, width: int, inner: int, combine: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.leaves, self._combine = leaves, combine
        for leaf, (inputs, outputs) in zip(leaves, ((width, inner), (width, inner), (inner, width)), strict=True):
            self.add_module(leaf, nn.Linear(inputs, outputs, bias=False, device="meta"))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        gate, up, down = (getattr(self, leaf) for leaf in self.leaves)
        found: torch.Tensor = down(self._combine(torch.cat([gate(states), up(states)], dim=-1)))
        return found


class Experts(nn.Module):
    """The experts of a layer as its modules ``0``, ``1``, ...; called as transformers calls the fused ones.

    ``fused``: the module they stand for.
    """

    def __init__(self, fused: Any, leaves: Leaves):
        super().__init__()
        count, self.width, inner = fused.down_proj.shape
        for place in range(count):
            self.add_module(str(place), Expert(leaves, self.width, inner, fused._apply_gate))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The outputs ``[tokens, width]`` of each token's experts ``[tokens, k]``, summed with their weights."""
        output = torch.zeros_like(hidden_states)
        for place in top_k_index.unique().tolist():
            tokens, slots = torch.where(top_k_index == place)
            found = getattr(self, str(place))(hidden_states[tokens])
            output.index_add_(0, tokens, found * top_k_weights[tokens, slots, None])
        return output


def part_experts(model: Any, stored: Collection[str]) -> dict[str, str]:
    """Replace the fused experts in ``model`` whose matrices are all among the names ``stored`` by `Experts`.

    Gives stored name -> parameter that it fills. Parameters of ``model`` may be on ``meta``.
    """
    fused = {path: module for path, module in model.named_modules() if _is_plain(module)}
    filled: dict[str, str] = {}
    for path, names in _stored_names(model, fused).items():
        leaves = _leaves(names)
        if leaves is None or not all(name in stored for parts in names for name in parts):
            continue
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, Experts(fused[path], leaves))
        for place, parts in enumerate(names):
            filled |= {name: f"{path}.{place}.{leaf}.weight" for name, leaf in zip(parts, leaves, strict=True)}
    return filled


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds matrices of several experts in one tensor."""
    convolves = isinstance(module, nn.modules.conv._ConvNd)
    return not convolves and any(p is not None and p.ndim == 3 for p in module._parameters.values())


def _is_plain(module: nn.Module) -> bool:
    declares = hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")
    return (
        declares
        and set(module._parameters) == set(_FUSED)
        and all(getattr(module, name, value) is value for name, value in _DECLARED.items())
    )


def _stored_names(model: Any, fused: Mapping[str, Any]) -> dict[str, list[Leaves]]:
    """The names of each expert's gate, up and down matrices in a checkpoint; fused experts without are left out."""
    if not fused:
        return {}
    from transformers.core_model_loading import revert_weight_conversion

    tensors, numbers, start = {}, {}, 0
    for path, module in fused.items():
        numbers[path] = range(start, start := start + _PARTS * len(module.down_proj), _PARTS)
        gates = torch.tensor(numbers[path]).reshape(-1, 1, 1)
        tensors[f"{path}.gate_up_proj"] = torch.cat([gates, gates + 1], dim=1)
        tensors[f"{path}.down_proj"] = gates + 2
    saved = revert_weight_conversion(model, tensors)
    name_of = {int(tensor): name for name, tensor in saved.items() if tensor.numel() == 1}
    return {
        path: [(name_of[gate], name_of[gate + 1], name_of[gate + 2]) for gate in gates]
        for path, gates in numbers.items()
        if all(gate + part in name_of for gate in gates for part in range(_PARTS))
    }


def _leaves(names: list[Leaves]) -> Leaves | None:
    """``gate_proj`` of ``...experts.7.gate_proj.weight``, and so on; None unless all experts have the same."""
    found = set()
    for place, parts in enumerate(names):
        matches = [re.search(rf"\.{place}\.(\w+)\.weight$", name) for name in parts]
        found.add(tuple(match[1] if match else "" for match in matches))
    leaves = found.pop()
    return None if found or not all(leaves) else (leaves[0], leaves[1], leaves[2])


class Reached(Exception):
    """The forward of a layer has come to its experts."""


class Turns:
    """Lets the experts of a layer work one after the other, each on all its tokens, in whatever batch these are.

    So a calibration holds the weights and the sums of one expert at a time, and reads each weight once. A layer runs
    twice for that: with `note`, up to its experts, whose inputs are kept; and, when all experts had their `turn`, with
    `give`. ``tokens``: of all batches. What is kept lies in files in ``scratch`` that are mapped and have no name.
    """

    def __init__(self, experts: Experts, tokens: int, scratch: Path | None):
        self._experts = experts
        self._inputs, self._outputs = (_mapped((tokens, experts.width), scratch) for _ in range(2))
        self._index: list[torch.Tensor] = []
        self._shares: list[torch.Tensor] = []
        self._done = 0
        #: whether the layer's forward is doing again what it did up to its experts
        self.repeats = False

    def note(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """A forward that keeps what the experts are given. Raises `Reached`."""
        self._inputs[self._next(hidden_states)] = hidden_states.float().cpu().numpy()
        self._index.append(top_k_index.cpu())
        self._shares.append(top_k_weights.cpu())
        raise Reached

    def reached(self) -> Iterator[int]:
        """The experts that at least one token comes to, in order."""
        self._done, self._chosen = 0, torch.cat(self._index)
        self._share = torch.cat(self._shares)
        yield from self._chosen.unique().tolist()

    def turn(self, place: int, batch: int, like: torch.Tensor) -> None:
        """Let an expert work on its tokens, ``batch`` at once; ``like``: a tensor of the kind it works with."""
        expert = getattr(self._experts, str(place))
        tokens, slots = torch.where(self._chosen == place)
        for start in range(0, len(tokens), batch):
            rows, slot = tokens[start : start + batch], slots[start : start + batch]
            found = expert(torch.from_numpy(self._inputs[rows.numpy()]).to(like)).float().cpu()
            self._outputs[rows.numpy()] += (found * self._share[rows, slot, None].float()).numpy()

    def give(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """A forward that gives what the experts have made of the tokens; batches come in the order of `note`."""
        self.repeats = False
        return torch.from_numpy(np.array(self._outputs[self._next(hidden_states)])).to(hidden_states)

    def _next(self, states: torch.Tensor) -> slice:
        rows = slice(self._done, self._done + len(states))
        self._done = rows.stop
        return rows


def _mapped(shape: tuple[int, int], folder: Path | None) -> NDArray[np.float32]:
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
