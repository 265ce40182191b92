"""What the reader of a report should know of weights that had been quantized before, and are quantized again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from coldpress.models.provenance import LatticeRecord, QuantizedLayer
from coldpress.quant.lattice import Lattice


def as_record(lattice: Lattice | None) -> LatticeRecord | None:
    """A lattice as it stands in what is known of a layer."""
    return LatticeRecord(**asdict(lattice)) if lattice else None


def remarks_on_lattices(layers: Sequence[QuantizedLayer]) -> list[str]:
    """What is to be said of layers of which some lay on a lattice."""
    kept = sum(layer.on_lattice for layer in layers)
    found = [f"The weights of {_count(kept, layers)} were on a grid already, and keep their codes."] if kept else []
    others = Counter(
        (
            replace(layer.lattice, distance=0.0),
            layer.bits,
            layer.block_size,
            layer.symmetric,
            not layer.lattice.distance,
        )
        for layer in layers
        if layer.lattice
    )
    for (lattice, bits, block_size, symmetric, is_whole), count in others.most_common():
        head = (
            f"The weights of {_count(count, layers)} lie on a grid of {lattice.bits} bits in blocks of"
            f" {lattice.block_size}"
        )
        if is_whole:
            found.append(f"{head}, and were rounded to another: {_remedy(lattice, bits, block_size, symmetric)}.")
        else:
            found.append(
                f"{head} above a float minimum, and were rounded again: zero points are whole codes here, and theirs"
                f" are {_distance(layers):.2f} of a step from one on average."
            )
    return found


def _count(some: int, notes: Sequence[Any]) -> str:
    if len(notes) == 1:
        return "one layer"
    return f"all {some} layers" if some == len(notes) else f"{some} of {len(notes)} layers"


def _distance(layers: Sequence[QuantizedLayer]) -> float:
    found = [layer.lattice.distance for layer in layers if layer.lattice and layer.lattice.distance]
    return sum(found) / len(found)


def _remedy(lattice: LatticeRecord, bits: int, block_size: int, symmetric: bool) -> str:
    """What would keep these codes."""
    needed = []
    if lattice.bits > bits:
        needed.append("8 bits")
    if lattice.block_size < block_size:
        needed.append(f"blocks of {lattice.block_size}")
    if symmetric and not lattice.symmetric:
        needed.append("zero points")
    return f"{' and '.join(needed)} would keep them" if needed else "some of their blocks have scales of their own"
