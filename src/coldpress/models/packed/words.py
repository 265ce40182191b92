"""Codes in 32-bit words, as quantized Hugging Face checkpoints hold them: one stream of bits, the lowest first.

With 2, 4 and 8 bits no code crosses a word. With 3 bits some do: 32 codes fill exactly three words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coldpress.quant.grid import Bytes
from coldpress.quant.pack import pack, unpack

Words = NDArray[np.int32]

#: codes that fill whole words at any number of bits
ALIGNED = 32


def words_for(count: int, bits: int) -> int:
    """The number of words that ``count`` codes take."""
    return -(-count * bits // 32)


def pack_words(codes: Bytes, bits: int) -> Words:
    """Codes ``[rows, count]`` below ``2**bits`` -> words ``[rows, words_for(count, bits)]``, filled up with 0."""
    rows, count = codes.shape
    if 8 % bits == 0:
        stream = pack(np.pad(codes, ((0, 0), (0, -count % (8 // bits)))), bits)
    else:
        flags = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
        stream = np.packbits(flags.reshape(rows, count * bits), axis=-1, bitorder="little")
    filled = np.zeros((rows, 4 * words_for(count, bits)), np.uint8)
    filled[:, : stream.shape[1]] = stream
    return filled.view("<i4")


def unpack_words(words: Words, bits: int, count: int) -> Bytes:
    """The first ``count`` codes ``[rows, count]`` of each row of ``words [rows, W]``."""
    stream = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if 8 % bits == 0:
        return unpack(stream, bits)[:, :count]
    flags = np.unpackbits(stream, axis=-1, count=count * bits, bitorder="little")
    return np.packbits(flags.reshape(len(words), count, bits), axis=-1, bitorder="little")[..., 0]


def unpack_loose_words(words: Words, bits: int, count: int) -> Bytes:
    """As ``unpack_words``, but each word holds ``32 // bits`` whole codes and the bits that are left over are 0."""
    places = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    codes = (np.ascontiguousarray(words, "<i4").view("<u4")[..., None] >> places) & np.uint32((1 << bits) - 1)
    return codes.astype(np.uint8).reshape(len(words), words.shape[1] * len(places))[:, :count]


def unpack_across(words: Words, bits: int, start: int, stop: int) -> Bytes:
    """Rows ``start`` to ``stop`` of a weight packed along its rows in words ``[lines, W]``: codes ``[n, lines]``."""
    first = start // ALIGNED * ALIGNED
    part = words[:, words_for(first, bits) : words_for(stop, bits)]
    return unpack_words(part, bits, stop - first)[:, start - first :].T
