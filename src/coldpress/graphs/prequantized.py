"""Weights that the checkpoint holds as codes already: the encoding they come with, and which fit into one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coldpress.errors import ColdpressError
from coldpress.graphs.kernels import Encoding
from coldpress.models.checkpoint import Span
from coldpress.models.packed.spans import PackedSpan


def readable_encoding(span: Span) -> Encoding | None:
    """The encoding of a span's codes; None for floats, and for codes that no kernel reads."""
    if not isinstance(span, PackedSpan):
        return None
    try:
        return Encoding(span.grid.bits, span.grid.block_size, span.grid.symmetric)
    except ColdpressError:
        return None


def stored_encoding(spans: Sequence[Span]) -> Encoding | None:
    """The encoding of weights one above the other, without zero points where none has any; None for floats."""
    first, *others = [readable_encoding(span) for span in spans]
    if first is None or not stack(spans):
        return None
    return replace(first, symmetric=all(other is None or other.symmetric for other in (first, *others)))


def stored_scale_dtype(spans: Sequence[Span]) -> str | None:
    """The type that holds the scales of weights one above the other as the checkpoint does; None where one has
    floats."""
    found = {span.scale_dtype if isinstance(span, PackedSpan) else None for span in spans}
    return next(iter(found)) if len(found) == 1 else None if None in found else "float32"


def stack(spans: Sequence[Span]) -> bool:
    """Whether weights can lie one above the other: all floats, or all codes with the same bits and blocks."""
    encodings = [readable_encoding(span) for span in spans]
    return len({(found.bits, found.block_size) if found else None for found in encodings}) == 1
