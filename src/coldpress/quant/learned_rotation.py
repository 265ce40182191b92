"""A rotation that is learned: the one after which rounding the weights is expected to cost their outputs least.

Of the rotations that leave a network as it is, some let it be quantized far better than others, as SpinQuant found
(https://arxiv.org/abs/2405.16406). It learns them from the loss of the quantized network, which has to run forwards and
backwards for every step. Here nothing runs. Rounding on a grid of step s misses up to s / 2 either way, s^2 / 12 in the
mean square, and what it misses of one weight says nothing of the next; so for inputs with the Gram matrix H the squared
error of a layer's output is expected to be the sum of ``s^2 / 12 * (R'HR)_jj`` over its weights. The step of a block
follows from its largest weight, so this is a smooth function of the rotation R almost everywhere, and needs no
rounding, whose own gradient is noise. It is taken relative to the layer's output, and of a few layers and some of their
rows at a time.

As in SpinQuant the start is a random rotation, and the steps stay among the rotations by the Cayley transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from coldpress.quant.grid import Grid
from coldpress.quant.rotate import Doubles

if TYPE_CHECKING:
    import torch

STEPS = 200
#: how far the first steps turn, in radians, roughly; the later ones turn less and less
_TURN = 0.1
#: rows of a weight that are looked at in a step
_ROWS = 512


@dataclass
class Reader:
    """``weight [rows, K]`` reads the stream: its inputs, which have ``gram [K, K]``, are turned."""

    weight: torch.Tensor
    gram: torch.Tensor

    def error(self, rotation: torch.Tensor, grid: Grid, random: np.random.Generator) -> torch.Tensor:
        """The squared error that rounding is expected to cause, relative to the squared output, on some of the rows."""
        weight = self.weight[_some(len(self.weight), random)]
        power = ((self.gram @ rotation) * rotation).sum(0)
        whole = ((weight @ self.gram) * weight).sum()
        return rounding_error(weight @ rotation, power, grid) / whole


@dataclass
class Writer:
    """``weight [K, inputs]`` writes to the stream: its outputs are turned, its inputs have ``power [inputs]``."""

    weight: torch.Tensor
    power: torch.Tensor

    def error(self, rotation: torch.Tensor, grid: Grid, random: np.random.Generator) -> torch.Tensor:
        """As of a `Reader`; what the output is taken to be holds for unrelated inputs."""
        kept = _some(len(self.weight), random)
        whole = (self.weight.square() @ self.power).sum() * (len(kept) / len(self.weight))
        return rounding_error(rotation[:, kept].T @ self.weight, self.power, grid) / whole


Turned: TypeAlias = "Reader | Writer"


def rounding_error(weight: torch.Tensor, power: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The squared error that rounding ``weight [rows, K]`` is expected to cause for inputs with ``power [K]``."""
    import torch

    padding = (0, -weight.shape[1] % grid.block_size)
    blocks = torch.nn.functional.pad(weight, padding).reshape(len(weight), -1, grid.block_size)
    if grid.symmetric:
        steps = blocks.abs().amax(2) / (grid.middle - (grid.bits == 8))
    else:
        steps = (blocks.amax(2).clamp_min(0) - blocks.amin(2).clamp_max(0)) / grid.top
    weighed = torch.nn.functional.pad(power, padding).reshape(-1, grid.block_size).sum(1)
    return (steps.square() @ weighed).sum() / 12


def learn_rotation(
    start: Doubles, weights_of: Callable[[int], Sequence[Turned]], grid: Grid, seed: int, steps: int = STEPS
) -> Doubles:
    """The rotation ``[K, K]`` that so many steps from ``start`` lead to.

    ``weights_of(step)`` gives the weights that a step looks at, in float32 on the device where the work is done.
    """
    import torch

    random, weights = np.random.default_rng(seed), weights_of(0)
    origin = torch.from_numpy(start).to(weights[0].weight)
    turn = _identity(len(origin), origin.device)
    speed = _TURN / (2 * len(origin) ** 0.5)
    adam = torch.optim.Adam(turn.parameters(), lr=speed)
    for step in range(steps):
        adam.param_groups[0]["lr"] = speed * (1 - step / steps)
        rotation = origin @ cast("torch.Tensor", turn.weight)
        loss = torch.stack([turned.error(rotation, grid, random) for turned in weights_of(step)]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    learned = origin.double() @ cast("torch.Tensor", turn.weight).detach().double()
    return nearest_rotation(cast("Doubles", learned.cpu().numpy()))


def _identity(size: int, device: torch.device) -> torch.nn.Module:
    """A module whose weight is the identity, and stays orthogonal whatever a gradient does to it."""
    import torch
    from torch.nn.utils.parametrizations import orthogonal

    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.eye(size, device=device))
    return orthogonal(module, orthogonal_map="cayley", use_trivialization=True)


def nearest_rotation(matrix: Doubles) -> Doubles:
    """The orthogonal matrix closest to one that is nearly so: what single precision has lost comes back."""
    left, _, right = np.linalg.svd(matrix)
    found: Doubles = left @ right
    return found


def _some(count: int, random: np.random.Generator) -> np.ndarray:
    """Up to `_ROWS` of so many rows, drawn without replacement, in order."""
    return np.sort(random.permutation(count)[:_ROWS])
