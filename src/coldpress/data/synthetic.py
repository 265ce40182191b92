"""Made-up inputs, from what the model itself says that it takes: for timing, and where real data is not at hand.

Token ids lie in the model's vocabulary, texts are those that a graph knows, or words, masks are ones, types zeros,
positions count up, caches of keys and values are empty, floats are normally distributed. Open axes have ``shapes`` or
``sizes`` as given, or what is usual: the batch, 128 tokens, images as large as the model's settings say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.data.batches.loader import folder_of
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.made_up import texts
from coldpress.graphs.signature import Input, signature
from coldpress.models.model import Model
from coldpress.models.onnx_folder import graph_file
from coldpress.parts import Batch, Context, Data, option

_FLOAT, _INT64 = 1, 7  # as ONNX numbers types
_TOKENS = 128
_PIXELS = 224
_CONSTANT = {"attention_mask": 1, "token_type_ids": 0}
#: beginnings of names that open axes have -> what they count
_TOKEN_AXES = ("seq", "token", "total", "length")


@dataclass(frozen=True)
class Synthetic(Data):
    """The same numbers each time, without labels."""

    batch_size: int = option("samples in a batch", 1)
    max_samples: int = option("how many samples there are", 8)
    sizes: dict[str, int] = option('sizes of open axes by their names, such as {"sequence_length": 64}', dict)
    shapes: dict[str, tuple[int, ...]] = option(
        "whole shapes of inputs by their names; the first axis is the batch", dict
    )
    ranges: dict[str, tuple[int, int]] = option("lowest and highest value of whole-number inputs by their names", dict)
    seed: int = option("decides the random numbers", 0)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_samples < 1:
            raise ColdpressError("batch_size and max_samples must be at least 1")

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        inputs = _inputs(model)
        for name in (*self.shapes, *self.ranges):
            if name not in inputs:
                raise ColdpressError(f"the model has no input '{name}'", hint=did_you_mean(name, inputs))
        settings = _settings(folder_of(model))
        random = np.random.default_rng(self.seed)
        for start in range(0, self.max_samples, self.batch_size):
            count = min(self.batch_size, self.max_samples - start)
            yield Batch({name: self._array(one, count, settings, random) for name, one in inputs.items()})

    def _array(self, one: Input, count: int, settings: dict[str, Any], random: np.random.Generator) -> np.ndarray:
        shape = self._shape(one, count, settings)
        if one.name == "position_ids":
            return np.broadcast_to(np.arange(shape[-1]), shape).astype(one.dtype)
        if one.name in _CONSTANT and one.name not in self.ranges:
            return np.full(shape, _CONSTANT[one.name], one.dtype)
        if one.dtype.kind == "O":
            return texts(one, shape, random)
        if one.dtype.kind == "b":
            return np.ones(shape, one.dtype)
        if one.dtype.kind in "iu":
            low, high = self.ranges.get(one.name) or (0, max(_highest(one, settings), 0))
            return random.integers(low, high, shape, endpoint=True).astype(one.dtype)
        return random.standard_normal(shape).astype(one.dtype)

    def _shape(self, one: Input, count: int, settings: dict[str, Any]) -> tuple[int, ...]:
        if one.name in self.shapes:
            return (count, *self.shapes[one.name][1:])
        return tuple(
            axis if isinstance(axis, int) else self._size(one, place, count, settings)
            for place, axis in enumerate(one.shape)
        )

    def _size(self, one: Input, place: int, count: int, settings: dict[str, Any]) -> int:
        """The size of an open axis."""
        name = str(one.shape[place] or "")
        if name in self.sizes:
            return self.sizes[name]
        if place == 0:
            return count
        if (
            one.rows is not None
            or one.name in ("input_ids", *_CONSTANT, "position_ids")
            or name.startswith(_TOKEN_AXES)
        ):
            return min(_TOKENS, settings.get("max_position_embeddings") or _TOKENS)
        if len(one.shape) == 4:
            return _pixels(one, place, settings)
        given = f"'{name}'" if name else f"number {place}"
        way = f"sizes: {{{name}: ...}}" if name else f"shapes: {{{one.name}: [...]}}"
        raise ColdpressError(f"the model leaves axis {given} of its input '{one.name}' open", hint=f"give {way}")


def _inputs(model: Model) -> dict[str, Input]:
    """What an ONNX model takes; for a Hugging Face folder, what its config.json says that it must take."""
    if model.format == "onnx":
        return {name: one for name, one in signature(graph_file(model.path)).items() if not one.is_cache}
    settings = _settings(model.path)
    if "vocab_size" in settings and "image_size" not in settings:
        return {name: Input(name, _INT64, ("batch", "sequence")) for name in ("input_ids", "attention_mask")}
    if "image_size" in settings and "vocab_size" not in settings:
        return {"pixel_values": Input("pixel_values", _FLOAT, ("batch", "channels", "height", "width"))}
    raise ColdpressError(
        f"what {model.path} takes is not plain from its config.json",
        hint="give data of another kind, or make it an ONNX model first",
    )


def _pixels(one: Input, place: int, settings: dict[str, Any]) -> int:
    """The size of an open axis of an image ``[N, C, H, W]`` or ``[N, H, W, C]``."""
    is_channels = place == 1 and one.shape[3] not in (1, 3)
    return settings.get("num_channels", 3) if is_channels else settings.get("image_size", _PIXELS)


def _highest(one: Input, settings: dict[str, Any]) -> int:
    rows = one.rows or settings.get("vocab_size")
    return rows - 1 if rows and ("ids" in one.name or one.rows) else 1


def _settings(folder: Path) -> dict[str, Any]:
    """Sizes that config.json, or preprocessor_config.json for images, tells; a size of a pair is its first."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "config.json"):
        file = folder / name
        if file.is_file():
            found |= json.loads(file.read_text(encoding="utf-8"))
    size = found.get("crop_size") or found.get("size") or {}
    if isinstance(size, dict) and "height" in size:
        found.setdefault("image_size", size["height"])
    return {key: value for key, value in found.items() if isinstance(value, int)}
