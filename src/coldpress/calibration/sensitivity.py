"""How much each group of modules matters: what the model's answers lose when that group alone is rounded to four bits.

A group is what must agree: the modules with one input, and of a layer's experts all that have the same part, so that
there are few groups, and readers of checkpoints find one kind of expert in a layer.

One walk through the float network measures all groups: a copy of the hidden states branches off where a group is
rounded, and every copy goes through the rest of the layers, whose weights are read once for all of them. At the end
stands, for each group, the KL divergence to the network without any rounding. With other bits a group loses more or
less, as the squared error of its output does (that is what the divergence of a small disturbance is proportional to);
this needs no run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.calibration.grams import Gram, GramFolder
from coldpress.networks.layerwise import Layerwise, States
from coldpress.networks.weights import Change, Weights
from coldpress.quant.allocate import Choice, together
from coldpress.quant.grid import Floats, Grid, dequantize, squared_error
from coldpress.quant.kquant import kquant

if TYPE_CHECKING:
    import torch

#: group -> bits -> its bytes and the divergence it causes, in nats a token
Menu = dict[str, dict[int, Choice]]
GridOf = Callable[[str, int], Grid]
_MEASURED_BITS = 4
#: a scale is a half, in a checkpoint and in a graph
_SCALE_BYTES = 2
_HEAD_MODULE = "lm_head"
_TINY = 1e-12
#: tokens whose logits are turned into float64 at once
_TOKENS = 32


#: modules that get the same bits, with what comes to them; None: nothing does
Group = dict[str, Gram | None]


@dataclass(frozen=True)
class Question:
    """What is to be decided: the modules that are open, the bits they may have, and the grid for so many bits."""

    modules: frozenset[str]
    bits: Sequence[int]
    grid_of: GridOf


def menu(
    decoder: Layerwise, grams: GramFolder, question: Question, progress: Callable[[str, float, float], None]
) -> Menu:
    """The choices of every group; its name is that of its modules, with commas. A tied head is the embedding."""
    clean = np.empty((*decoder.ids.shape, decoder.width), np.float32)
    decoder.embed(clean)
    groups = {layer: _groups(decoder, grams, layer, question) for layer in decoder.layers}
    branches = _Branches(clean.shape, 1 + sum(map(len, groups.values())))
    errors: dict[str, dict[int, Choice]] = {}
    for name in (decoder.embedding, _HEAD_MODULE):
        if name in question.modules:
            errors[name] = _table_choices(decoder, name, question)
    if decoder.embedding in question.modules:
        branches.new(decoder.embedding)[:] = _rounded_embedding(decoder, clean, question)
    for place, layer in enumerate(decoder.layers):
        progress("measuring sensitivities", place, len(decoder.layers))
        weights = decoder.held(layer)
        if len(branches):
            decoder.run(layer, weights, branches.all(), branches.all())
        for group in groups[layer]:
            name = ", ".join(group)
            errors[name] = together([_choices(weights, module, gram, question) for module, gram in group.items()])
            decoder.run(layer, _with_rounded(weights, group, question), clean, branches.new(name))
        decoder.run(layer, weights, clean, clean)
    return _scaled(decoder, clean, branches, errors, question)


def _groups(decoder: Layerwise, grams: GramFolder, layer: str, question: Question) -> list[Group]:
    gram_of = {module: gram for gram in grams.get(layer) for module in gram.modules}
    part_of: dict[str, str] = {}
    for gate, up, down in decoder.experts(layer):
        part_of |= {gate: "inputs", up: "inputs", down: "outputs"}
    found: dict[Any, Group] = {}
    for module in decoder.linears(layer):
        if module in question.modules:
            gram = gram_of.get(module)
            found.setdefault(part_of.get(module, id(gram)), {})[module] = gram
    return list(found.values())


class _Branches:
    """Hidden states that came apart from the clean ones, by name, in one array ``[branches, windows, tokens, width]``.

    So all of them run through a layer at once, which reads its weights once.
    """

    def __init__(self, shape: tuple[int, ...], most: int):
        self._states, self._places = np.empty((most, *shape), np.float32), dict[str, int]()

    def __len__(self) -> int:
        return len(self._places)

    def new(self, name: str) -> States:
        self._places[name] = len(self._places)
        return self._states[self._places[name]]

    def get(self, name: str, otherwise: States) -> States:
        return self._states[self._places[name]] if name in self._places else otherwise

    def all(self) -> States:
        """Those that there are, ``[branches * windows, tokens, width]``."""
        return self._states[: len(self._places)].reshape(-1, *self._states.shape[2:])


def _scaled(decoder: Layerwise, clean: States, branches: _Branches, errors: Menu, question: Question) -> Menu:
    """The squared errors of each group turned into divergences, by the one that was measured."""
    expected = decoder.logits(clean)
    found: Menu = {}
    for name in errors:
        is_head = name == _HEAD_MODULE or (name == decoder.embedding and decoder.is_tied)
        head = _rounded_head(decoder, name, question) if is_head else None
        loss = _divergence(expected, decoder.logits(branches.get(name, clean), head))
        unit = loss / max(errors[name][_MEASURED_BITS].error, _TINY)
        found[name] = {bits: Choice(choice.size, choice.error * unit) for bits, choice in errors[name].items()}
    return found


def _divergence(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """KL(expected || logits), the mean over tokens; ``expected`` are logits too.

    In float64: the divergence of a small disturbance is the square of it, which float32 loses in the rounding of its
    terms.
    """
    total, rows, others = 0.0, expected.flatten(0, -2), logits.flatten(0, -2)
    for one, other in zip(rows.split(_TOKENS), others.split(_TOKENS), strict=True):
        known, found = one.double().log_softmax(-1), other.double().log_softmax(-1)
        total += float((known.exp() * (known - found)).sum())
    return max(total, 0.0) / len(rows)


def _choices(weights: Weights, module: str, gram: Gram | None, question: Question) -> dict[int, Choice]:
    """Bytes and squared output error of one module for every number of bits; without inputs there is no error."""
    found, weight = {}, weights[f"{module}.weight"]
    matrix = None if gram is None else gram.matrix
    for bits in question.bits:
        grid, error = question.grid_of(module, bits), 0.0
        if matrix is not None:
            missed = weight - _rounded(weight, grid, matrix)
            error = float(np.einsum("rk,rk->", missed @ matrix, missed))
        found[bits] = Choice(stored_bytes(weight.shape, grid), error)
    return found


def _rounded(weight: Floats, grid: Grid, matrix: Floats) -> Floats:
    return dequantize(kquant(weight, grid, np.ascontiguousarray(matrix.diagonal())), weight.shape[1])


def _with_rounded(weights: Weights, group: Group, question: Question) -> Weights:
    """Weights with those of a group rounded when they are read."""

    def change(module: str, gram: Gram) -> Change:
        return lambda weight: _rounded(weight, question.grid_of(module, _MEASURED_BITS), gram.matrix)

    return weights.changed(
        {f"{module}.weight": change(module, gram) for module, gram in group.items() if gram is not None}
    )


def stored_bytes(shape: tuple[int, ...], grid: Grid) -> int:
    """Codes, scales and zero points of a weight ``[rows, K]``."""
    blocks = shape[0] * grid.blocks(shape[1])
    bits = blocks * (grid.block_size * grid.bits + 8 * _SCALE_BYTES + (0 if grid.symmetric else grid.bits))
    return -(-bits // 8)


def _table(decoder: Layerwise, name: str) -> Floats:
    tensor = decoder.head_weight() if name == _HEAD_MODULE else decoder.tensor(f"{name}.weight")
    found: Floats = tensor.cpu().numpy()
    return found


def _table_choices(decoder: Layerwise, name: str, question: Question) -> dict[int, Choice]:
    """Bytes and squared error of embedding or head for every number of bits."""
    table, found = _table(decoder, name), {}
    for bits in question.bits:
        grid = question.grid_of(name, bits)
        size = stored_bytes(table.shape, grid)
        found[bits] = Choice(size, squared_error(table, kquant(table, grid)))
    return found


def _rounded_embedding(decoder: Layerwise, clean: States, question: Question) -> States:
    """The states that rounded embeddings lead to."""
    table = _table(decoder, decoder.embedding)
    rows = table[decoder.ids]
    flat = rows.reshape(-1, table.shape[1])
    codes = kquant(flat, question.grid_of(decoder.embedding, _MEASURED_BITS))
    missed = dequantize(codes, table.shape[1]).reshape(rows.shape) - rows
    # what an embedding layer does to a row (a factor, as in Gemma) it does to the rounded row
    factor = np.float32(np.linalg.norm(clean) / max(float(np.linalg.norm(rows)), _TINY))
    states: States = clean + factor * missed
    return states


def _rounded_head(decoder: Layerwise, name: str, question: Question) -> torch.Tensor:
    import torch

    weight = _table(decoder, _HEAD_MODULE)
    codes = kquant(weight, question.grid_of(name, _MEASURED_BITS))
    return torch.from_numpy(dequantize(codes, weight.shape[1])).to(decoder.device)
