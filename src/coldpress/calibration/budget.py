"""The bytes that quantized weights may take together: from bits a weight, or from the size of the pressed model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.ties import is_own_head

if TYPE_CHECKING:
    from coldpress.calibration.module_grids import ModuleGrids
    from coldpress.networks.layerwise import Layerwise

#: a weight has 8 bits at most, and one more of its share in a scale
_BITS = (2, 9)
#: what a layer, and an expert of it, takes in a graph, beside its weights
_LAYER_BYTES, _EXPERT_BYTES = 8000, 5000
_SCALE_BITS = 16
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Budget:
    """``target_bits`` a weight on average, scales included; or ``max_size`` of the pressed model, such as 90MB."""

    target_bits: float | None
    max_size: str | None

    @property
    def is_set(self) -> bool:
        return self.target_bits is not None or self.max_size is not None

    def check(self) -> None:
        if self.target_bits is not None and self.max_size is not None:
            raise ColdpressError("target_bits and max_size are two budgets for the same bits", hint="leave one out")
        least, most = _BITS
        if self.target_bits is not None and not least <= self.target_bits <= most:
            raise ColdpressError(
                f"target_bits is {self.target_bits:g}; a weight has {least} to 8 bits and its share in a scale",
                hint=f"pass --target_bits between {least} and {most}, such as 4.5",
            )
        if self.max_size is not None:
            bytes_of(self.max_size)

    def bytes_for(self, decoder: Layerwise, shapes: Mapping[str, tuple[int, int]], least: int) -> int:
        """The budget of modules with these shapes; ColdpressError where the ``least`` they can take is more."""
        weights = sum(rows * columns for rows, columns in shapes.values())
        rest = self._beside(decoder, weights)
        return self._room(weights, least, rest)

    def check_possible(self, folder: Path, grids: ModuleGrids) -> None:
        """Raise ColdpressError where the weights in a Hugging Face folder do not fit with the fewest bits for all of
        them.

        That needs their shapes only. It may be a little less than `bytes_for` finds, never more.
        """
        weights, floats = 0, 0
        tensors = Checkpoint(folder).tensors
        for name, span in tensors.items():
            if is_own_head(name, tensors) is False:  # the embedding once more
                continue
            is_quantized = len(span.shape) > 1 and not grids.stays_float(name.removesuffix(".weight"))
            weights += math.prod(span.shape) if is_quantized else 0
            floats += 0 if is_quantized else math.prod(span.shape)
        zero_bits = 0 if grids.symmetric else _BITS[0]
        least = int(weights * (_BITS[0] + (_SCALE_BITS + zero_bits) / grids.group_size) / 8)
        self._room(weights, least, 4 * floats)

    def _room(self, weights: int, least: int, rest: int) -> int:
        """The bytes for so many quantized weights beside the ``rest``; ColdpressError where they need more."""
        if self.target_bits is not None:
            budget = int(weights * self.target_bits / 8)
            seen, needed = f"target_bits is {self.target_bits:g}", math.ceil(least * 800 / weights) / 100
            hint = f"pass --target_bits {needed:g} or more, or a larger --group_size"
        else:
            budget = bytes_of(str(self.max_size)) - rest
            seen = f"max_size is {self.max_size}"
            hint = f"pass --max_size {math.ceil((least + rest) / 10_000) / 100:g}MB or more, or a larger --group_size"
        if least > budget:
            raise ColdpressError(f"{seen}; the weights do not fit into that with the bits allowed", hint=hint)
        return budget

    def _beside(self, decoder: Layerwise, weights: int) -> int:
        """Pressed, what is not quantized is float32, and there are the graph and its rotary tables."""
        graph = sum(_LAYER_BYTES + _EXPERT_BYTES * len(decoder.experts(layer)) for layer in decoder.layers)
        return 4 * (decoder.parameters - weights) + decoder.rotary_bytes + graph


def bytes_of(text: str) -> int:
    """``90MB`` or ``1.5 GB``, in decimal units."""
    number, unit = text.strip().rstrip("BbKkMmGg").strip(), text.strip().upper()
    factor = next((factor for ending, factor in _UNITS.items() if unit.endswith(ending)), None)
    try:
        size = float(number)
    except ValueError:
        size = 0.0
    if not 0 < size < math.inf:
        raise ColdpressError(f"max_size: '{text}' is not a size", hint="write 90MB or 1.5GB")
    if factor is None:
        raise ColdpressError(f"max_size: '{text}' has no unit", hint=f"write {number}MB or {number}GB")
    size *= factor
    return int(size)
