"""Which linear layer of a converted model goes wrong first, by comparing every layer's output with the source's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from coldpress.data.texts import heldout
from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.models.model import Model
from coldpress.networks.referee import MAX_MEMORY, misread, reference_of
from coldpress.networks.reference import Reference
from coldpress.parts import Context, Metric, Value

_LONGEST_WINDOW = 128

#: joined module -> the source's modules, in the order of their rows
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class WorstLayer(Metric):
    """The layer of an ONNX model that departs most from ``ctx.source``; its name is among the details."""

    max_memory: float | None = field(default=None, metadata={"help": MAX_MEMORY})
    trust_remote_code: bool = field(default=False, metadata={"help": "run model code from the source folder"})

    values: ClassVar[Mapping[str, Value]] = {"relative_error": Value("lower")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "transformers")
    version: ClassVar[int] = 3

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        if ctx.source is None or ctx.source.format != "hf":
            raise ColdpressError(
                "worst_layer needs the Hugging Face model to compare with", hint="name it with --source"
            )
        window = heldout.windows(ctx.source.path, _LONGEST_WINDOW, 1)[0]
        reference, _ = reference_of(ctx.source.path, self.trust_remote_code, self.max_memory)
        name, error = worst_layer(model.path, reference, window, ctx.target.thread_count)
        return {
            "name": name,
            "relative_error": error,
            "misread": misread(ctx.source.path, self.trust_remote_code),
        }


def worst_layer(model_folder: Path, source: Reference, window: np.ndarray, threads: int = 0) -> tuple[str, float]:
    """The layer at which the error jumps most over every earlier layer's, and its relative error.

    The relative error of a layer is ``||output - source's output|| / ||source's output||`` over the first 128 tokens
    of the window. Errors carry on to later layers, so not the largest error but the largest step up tells where
    it comes from; in the graph's order that is the layer itself, or what stands between it and the one before.
    """
    errors = layer_errors(model_folder, source, window[:_LONGEST_WINDOW], threads)
    if not errors:
        raise ColdpressError(f"no layer of {model_folder} has a name of its source, so none can be compared")
    highest_before, worst, largest_step = 0.0, "", -1.0
    for name, error in errors.items():
        step = (error if np.isfinite(error) else np.inf) - highest_before
        if step > largest_step:
            worst, largest_step = name, step
        highest_before = max(highest_before, error if np.isfinite(error) else np.inf)
        if highest_before == np.inf:
            break
    return worst, errors[worst]


def layer_errors(model_folder: Path, source: Reference, window: np.ndarray, threads: int = 0) -> dict[str, float]:
    """The relative error of every linear layer that both sides have, in the order of the graph."""
    decoder = Decoder(model_folder, threads)
    layers = list(decoder.linears().values())
    parts = {name for layer in layers for module in layer for name in (module, *_joined_from(module))}
    expected = source.hidden(window, sorted(parts))
    found = decoder.linear_outputs(window, {layer[0] for layer in layers})
    errors = {}
    for layer in layers:
        truth, output = _source_output(layer, expected), found[layer[0]]
        if truth is not None and truth.shape == output.shape:
            difference, norm = np.linalg.norm(output - truth), np.linalg.norm(truth)
            errors[" + ".join(layer)] = float(difference / max(norm, np.finfo(np.float32).tiny))
    return errors


def _source_output(layer: tuple[str, ...], expected: Mapping[str, np.ndarray]) -> np.ndarray | None:
    names = [name for module in layer for name in ((module,) if module in expected else _joined_from(module))]
    if not names or any(name not in expected for name in names):
        return None
    return np.concatenate([expected[name] for name in names], axis=-1)


def _joined_from(module: str) -> tuple[str, ...]:
    parent, _, name = module.rpartition(".")
    return tuple(f"{parent}.{part}" for part in _JOINED.get(name, ()))
