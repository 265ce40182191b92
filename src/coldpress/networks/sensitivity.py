"""How much each group of layers matters: what the model's answers lose when that group alone is rounded to four bits.

One walk through the float network measures all groups: a copy of the hidden states branches off where a group is rounded,
and every copy goes through the rest of the layers, whose weights are read once for all of them. At the end stands, for each
group, the KL divergence to the network without any rounding. With other bits a group loses more or less, as the squared
error of its output does (that is what the divergence of a small disturbance is proportional to); this needs no run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldpress.networks.grams import Gram, GramFolder
from coldpress.networks.layerwise import Layerwise, States, Tensors
from coldpress.quant.allocate import Choice, together
from coldpress.quant.grid import Floats, Grid, dequantize, squared_error
from coldpress.quant.kquant import kquant

if TYPE_CHECKING:
    import torch

#: group -> bits -> its bytes and the divergence it causes, in nats a token
Menu = dict[str, dict[int, Choice]]
GridOf = Callable[[str, int], Grid]
_MEASURED_BITS = 4
_HEAD_MODULE = "lm_head"
_TINY = 1e-12


@dataclass(frozen=True)
class Question:
    """What is to be decided: the modules that are open, the bits they may have, and the grid for so many bits.

    ``scale_bytes``: what a scale counts.
    """

    modules: frozenset[str]
    bits: Sequence[int]
    grid_of: GridOf
    scale_bytes: int


def menu(
    decoder: Layerwise, grams: GramFolder, question: Question, progress: Callable[[str, float, float], None]
) -> Menu:
    """The choices of every group of modules that must agree: those with one input. A tied head is the embedding."""
    clean = np.empty((*decoder.ids.shape, decoder.width), np.float32)
    decoder.embed(clean)
    branches: dict[str, States] = {}
    errors: dict[str, dict[int, Choice]] = {}
    for name in (decoder.embedding, _HEAD_MODULE):
        if name in question.modules:
            errors[name] = _table_choices(decoder, name, question)
    if decoder.embedding in question.modules:
        branches[decoder.embedding] = _rounded_embedding(decoder, clean, question)
    for place, layer in enumerate(decoder.layers):
        progress("measuring sensitivities", place, len(decoder.layers))
        weights = decoder.weights(layer)
        for states in branches.values():
            decoder.run(layer, weights, states, states)
        for gram in grams.get(layer):
            modules = [module for module in gram.modules if module in question.modules]
            if modules:
                name = ", ".join(modules)
                errors[name] = together(
                    [_choices(_numpy(weights, module), gram, module, question) for module in modules]
                )
                branches[name] = np.empty_like(clean)
                decoder.run(layer, _rounded(weights, modules, gram, question), clean, branches[name])
        decoder.run(layer, weights, clean, clean)
    return _scaled(decoder, clean, branches, errors, question)


def _scaled(
    decoder: Layerwise, clean: States, branches: Mapping[str, States], errors: Menu, question: Question
) -> Menu:
    """The squared errors of each group turned into divergences, by the one that was measured."""
    expected = decoder.logits(clean).log_softmax(-1)
    found: Menu = {}
    for name in errors:
        is_head = name == _HEAD_MODULE or (name == decoder.embedding and decoder.is_tied)
        head = _rounded_head(decoder, name, question) if is_head else None
        loss = _divergence(expected, decoder.logits(branches.get(name, clean), head))
        unit = loss / max(errors[name][_MEASURED_BITS].error, _TINY)
        found[name] = {bits: Choice(choice.size, choice.error * unit) for bits, choice in errors[name].items()}
    return found


def _divergence(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """KL(expected || logits), the mean over tokens."""
    other = logits.log_softmax(-1)
    return float((expected.exp() * (expected - other)).sum(-1).mean().clamp_min(0))


def _choices(weight: Floats, gram: Gram, module: str, question: Question) -> dict[int, Choice]:
    """Bytes and squared output error of one module for every number of bits."""
    found = {}
    power = np.ascontiguousarray(gram.matrix.diagonal())
    for bits in question.bits:
        grid = question.grid_of(module, bits)
        missed = weight - dequantize(kquant(weight, grid, power), weight.shape[1])
        error = float(np.einsum("rk,rk->", missed @ gram.matrix, missed))
        found[bits] = Choice(stored_bytes(weight.shape, grid, question.scale_bytes), error)
    return found


def stored_bytes(shape: tuple[int, ...], grid: Grid, scale_bytes: int) -> int:
    """Codes, scales and zero points of a weight ``[rows, K]``."""
    blocks = shape[0] * grid.blocks(shape[1])
    bits = blocks * (grid.block_size * grid.bits + 8 * scale_bytes + (0 if grid.symmetric else grid.bits))
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
        size = stored_bytes(table.shape, grid, question.scale_bytes)
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


def _rounded(weights: Tensors, modules: Sequence[str], gram: Gram, question: Question) -> Tensors:
    import torch

    changed, power = dict(weights), np.ascontiguousarray(gram.matrix.diagonal())
    for module in modules:
        weight = _numpy(weights, module)
        codes = kquant(weight, question.grid_of(module, _MEASURED_BITS), power)
        values = torch.from_numpy(dequantize(codes, weight.shape[1]))
        changed[f"{module}.weight"] = values.to(weights[f"{module}.weight"].device)
    return changed


def _rounded_head(decoder: Layerwise, name: str, question: Question) -> torch.Tensor:
    import torch

    weight = _table(decoder, _HEAD_MODULE)
    codes = kquant(weight, question.grid_of(name, _MEASURED_BITS))
    return torch.from_numpy(dequantize(codes, weight.shape[1])).to(decoder.device)


def _numpy(weights: Tensors, module: str) -> Floats:
    found: Floats = weights[f"{module}.weight"].cpu().numpy()
    return found
