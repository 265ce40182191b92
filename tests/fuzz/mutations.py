"""What goes wrong with Hugging Face folders: each function does one such thing to a folder, at random.

A mutation may leave a folder as good as it was, or break it, or make another model of it. `CHECKPOINT` are for all
folders, `PACKED` for quantized ones.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import isfunction
from pathlib import Path
from random import Random
from types import ModuleType

from tests.fuzz import changed_packing, changed_prompts, changed_settings, changed_weights

Mutation = Callable[[Path, Random], None]


def unchanged(folder: Path, random: Random) -> None:
    """So that a base alone, or one mutation of two, is among the cases."""


def _all_of(module: ModuleType) -> tuple[Mutation, ...]:
    """The functions of a module, in their order, but for its helpers."""
    own = (one for one in vars(module).values() if isfunction(one) and one.__module__ == module.__name__)
    return tuple(one for one in own if not one.__name__.startswith("_"))


CHECKPOINT = (
    *(one for part in (changed_weights, changed_settings, changed_prompts) for one in _all_of(part)),
    unchanged,
)
PACKED = _all_of(changed_packing)
