"""How ``MatMulNBits`` and ``GatherBlockQuantized`` store a weight.

Which encodings are slow is known to ``rules/block_quantized_products.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Encoding:
    """How a weight is stored: ``bits`` 2, 4 or 8 on a grid of blocks along its input dimension."""

    bits: int
    block_size: int
    symmetric: bool


def fitting_block(columns: int, wanted: int) -> int:
    """The largest block up to ``wanted`` that divides the ``columns`` of a weight; ``wanted`` (padded) if none does."""
    return next((size for size in reversed(BLOCK_SIZES) if size <= wanted and columns % size == 0), wanted)
