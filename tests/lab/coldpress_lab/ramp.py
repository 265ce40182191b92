"""Batches with a known largest number: the first ones have the ``peaks`` in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from coldpress import Context, Model
from coldpress.parts import Batch, Data


@dataclass(frozen=True)
class Ramp(Data):
    """Numbers from 0 to each peak, float32 ``[1, size]``."""

    peaks: tuple[float, ...] = field(default=(1.0, 4.0, 2.0), metadata={"help": "largest number of each batch"})
    size: int = field(default=8, metadata={"help": "numbers in a batch"})

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        for peak in self.peaks:
            yield Batch({"x": np.linspace(0, peak, self.size, dtype=np.float32)[None]})
