"""Which legal configurations of ONNX Runtime's kernels are slow, and the nearest fast one.

Measured with onnxruntime 1.31 on a CPU with AVX512-VNNI, K=2048, N=4096, one row: a float product takes 0.7 ms, a fast 4-bit
one 0.1 ms, and the configurations refused here 15 to 60 ms (``benchmarks/kernels.py`` repeats the measurement).
"""

from __future__ import annotations

from dataclasses import dataclass

from coldpress.errors import ColdpressError

BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Encoding:
    """How a weight is stored: ``bits`` 2, 4 or 8 on a grid of blocks along its input dimension."""

    bits: int
    block_size: int
    symmetric: bool


def check_kernel(encoding: Encoding, accuracy_level: int, provider: str) -> None:
    """Raise ColdpressError for a configuration that falls off a performance cliff on ``provider``."""
    if encoding.block_size not in BLOCK_SIZES:
        raise ColdpressError(
            f"block_size {encoding.block_size} is not one that MatMulNBits has",
            hint=f"use one of {', '.join(map(str, BLOCK_SIZES))}",
        )
    if provider != "cpu":
        return
    if encoding.bits in (2, 8) and accuracy_level != 4:
        raise ColdpressError(
            f"accuracy_level {accuracy_level} with {encoding.bits}-bit weights is 30 to 100 times slower on the CPU",
            hint="use accuracy_level 4, or 4-bit weights",
        )
    if encoding.bits == 2 and encoding.block_size not in (32, 64, 128):
        raise ColdpressError(
            f"2-bit weights with block_size {encoding.block_size} are 100 times slower on the CPU",
            hint="use block_size 32, 64 or 128",
        )


def fitting_block(columns: int, wanted: int) -> int:
    """The largest block up to ``wanted`` that divides the ``columns`` of a weight; ``wanted`` (padded) if none does."""
    return next((size for size in reversed(BLOCK_SIZES) if size <= wanted and columns % size == 0), wanted)
