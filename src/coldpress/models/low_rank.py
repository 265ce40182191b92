"""What is added to a linear layer, as a product of two small matrices, and how such products are taken apart and put
together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coldpress.quant.grid import Floats


@dataclass(frozen=True)
class LowRank:
    """What is added to a linear layer: ``factors()`` gives A ``[in, r]`` and B ``[r, out]``, float32, all scaling in
    B."""

    inputs: int
    outputs: int
    rank: int
    factors: Callable[[], tuple[Floats, Floats]]

    def delta(self) -> Floats:
        """What is added to the layer's weight ``[out, in]``."""
        a, b = self.factors()
        return np.ascontiguousarray((a @ b).T)

    def rows(self, start: int, stop: int) -> LowRank:
        """What is added to some of the layer's outputs."""

        def factors() -> tuple[Floats, Floats]:
            a, b = self.factors()
            return a, b[:, start:stop]

        return LowRank(self.inputs, stop - start, self.rank, factors)


def stacked(parts: Sequence[LowRank | int]) -> LowRank:
    """The sum for layers that read the same input, their outputs one after the other; a number stands for so many
    untouched outputs.

    A's columns lie side by side, B is block-diagonal.
    """
    known = [part for part in parts if isinstance(part, LowRank)]
    rank, outputs = sum(part.rank for part in known), sum(p if isinstance(p, int) else p.outputs for p in parts)

    def factors() -> tuple[Floats, Floats]:
        a, b = [], np.zeros((rank, outputs), np.float32)
        row = column = 0
        for part in parts:
            if isinstance(part, LowRank):
                down, up = part.factors()
                a.append(down)
                b[row : row + part.rank, column : column + part.outputs] = up
                row += part.rank
            column += part if isinstance(part, int) else part.outputs
        return np.concatenate(a, axis=1), b

    return LowRank(known[0].inputs, outputs, rank, factors)
