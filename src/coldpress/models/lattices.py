"""What the reader of a report should know of weights that had been quantized before, and are quantized again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from coldpress.quant.lattice import Lattice


def as_note(lattice: Lattice | None) -> dict[str, Any] | None:
    """A lattice as it stands in the note of a module."""
    return asdict(lattice) if lattice else None


def remarks_on_lattices(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be said of modules of which some lay on a lattice.

    A note has ``on_lattice``, whether the codes are those that the weights had; ``lattice``, as of `as_note`, where
    they are not; and ``bits``, ``block_size`` and ``symmetric`` of the grid.
    """
    kept = sum(bool(note.get("on_lattice")) for note in notes)
    found = [f"The weights of {_count(kept, notes)} were on a grid already, and keep their codes."] if kept else []
    others = Counter(
        (Lattice(**{**note["lattice"], "distance": 0.0}), note["bits"], note["block_size"], note["symmetric"], is_whole)
        for note in notes
        if note.get("lattice") and (is_whole := not note["lattice"]["distance"]) is not None
    )
    for (lattice, bits, block_size, symmetric, is_whole), count in others.most_common():
        head = f"The weights of {_count(count, notes)} lie on a grid of {lattice.bits} bits in blocks of {lattice.block_size}"
        if is_whole:
            found.append(f"{head}, and were rounded to another: {_remedy(lattice, bits, block_size, symmetric)}.")
        else:
            found.append(
                f"{head} above a float minimum, and were rounded again: zero points are whole codes here, and theirs are "
                f"{_distance(notes):.2f} of a step from one on average."
            )
    return found


def _count(some: int, notes: Sequence[Any]) -> str:
    if len(notes) == 1:
        return "one layer"
    return f"all {some} layers" if some == len(notes) else f"{some} of {len(notes)} layers"


def _distance(notes: Sequence[Mapping[str, Any]]) -> float:
    found = [note["lattice"]["distance"] for note in notes if note.get("lattice") and note["lattice"]["distance"]]
    return float(sum(found) / len(found))


def _remedy(lattice: Lattice, bits: int, block_size: int, symmetric: bool) -> str:
    """What would keep these codes."""
    needed = []
    if lattice.bits > bits:
        needed.append("8 bits")
    if lattice.block_size < block_size:
        needed.append(f"blocks of {lattice.block_size}")
    if symmetric and not lattice.symmetric:
        needed.append("zero points")
    return f"{' and '.join(needed)} would keep them" if needed else "some of their blocks have scales of their own"
