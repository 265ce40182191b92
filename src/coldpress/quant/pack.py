"""Codes as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them: several to a byte, the first lowest."""

from __future__ import annotations

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.quant.grid import ONNX_BITS, Bytes


def pack(codes: Bytes, bits: int) -> Bytes:
    """Codes ``[rows, blocks, block_size]`` below ``2**bits`` -> bytes ``[rows, blocks, block_size * bits / 8]``."""
    per_byte = _per_byte(bits)
    packed = codes[..., ::per_byte].copy()
    for place in range(1, per_byte):
        packed |= codes[..., place::per_byte] << np.uint8(bits * place)
    return packed


def unpack(packed: Bytes, bits: int) -> Bytes:
    """The codes ``[rows, blocks, block_size]`` in ``packed [rows, blocks, block_size * bits / 8]``."""
    per_byte = _per_byte(bits)
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * per_byte), np.uint8)
    for place in range(per_byte):
        codes[..., place::per_byte] = (packed >> np.uint8(bits * place)) & np.uint8((1 << bits) - 1)
    return codes


def pack_zero_points(zero_points: Bytes, bits: int) -> Bytes:
    """Zero points ``[rows, blocks]`` -> ``[rows, ceil(blocks * bits / 8)]`` bytes, each row's last filled up with 0."""
    missing = -zero_points.shape[1] % _per_byte(bits)
    return pack(np.pad(zero_points, ((0, 0), (0, missing))), bits)


def unpack_zero_points(packed: Bytes, blocks: int, bits: int) -> Bytes:
    """The zero points ``[rows, blocks]`` in ``packed [rows, ceil(blocks * bits / 8)]``."""
    return unpack(packed, bits)[:, :blocks]


def _per_byte(bits: int) -> int:
    """How many codes a byte holds."""
    if bits not in ONNX_BITS:
        raise ColdpressError(
            f"codes of {bits} bits have no place in an ONNX model: no kernel reads them",
            hint="choose 2, 4 or 8 bits, or write a Hugging Face folder",
        )
    return 8 // bits
