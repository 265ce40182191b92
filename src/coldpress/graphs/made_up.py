"""Made-up inputs for any graph, from what it says that it takes: to try whether it runs, and whether two graphs compute
the same.

Indices lie in the table they pick from, masks are ones, positions count up, an input that the graph compares with
constants has one of these. Open axes have the same size wherever they have the same name. Nobody knows which sizes a
graph of others can take, so there are several `TRIES`, and whoever runs them goes on to the next where one does not
run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.graphs.signature import Input, empty_cache
from coldpress.models.onnx_folder import read_genai_config

#: what a text input gets where the graph does not say which texts it knows
_WORDS = ("a", "the", "model", "", "ü", "an unknown text")
_CHANNELS = 3
_LENGTHS = ("length", "lens", "seqlen")


@dataclass(frozen=True)
class Try:
    """``batch``: size of open first axes; ``size``: of the others, in the first input, and in the others, too, unless
    ``is_narrow``: then these have the batch there. ``most``: whole numbers that are no indices stay below it.
    """

    batch: int
    size: int
    is_narrow: bool = False
    most: int = 2


#: usual sizes: tokens, pictures, windows of sound; the smallest last
TRIES = (
    Try(2, 16),
    Try(1, 64),
    Try(3, 7),
    Try(1, 512, is_narrow=True),
    Try(2, 512, is_narrow=True),
    Try(1, 224),
    Try(2, 32, is_narrow=True, most=10),
    Try(1, 128, most=10),
    Try(1, 1, most=1),
)


def feed(inputs: Mapping[str, Input], folder: Path, how: Try, seed: int) -> dict[str, np.ndarray]:
    """An array by the name of each input; caches are empty. ColdpressError for what is no tensor.

    ``folder``: where a genai_config.json may tell sizes.
    """
    random = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    made = {}
    for place, one in enumerate(inputs.values()):
        shape = _shape(one, how, place > 0, sizes)
        empty = _past(one, folder, how) if one.is_cache else None
        made[one.name] = _array(one, shape, how, random) if empty is None else np.zeros(empty, one.dtype)
    return made


def _past(one: Input, folder: Path, how: Try) -> tuple[int, ...] | None:
    """The shape of an empty cache of keys or values, if it is one, else None."""
    if len(one.shape) != 4 or isinstance(one.shape[2], int):
        return None
    batch = one.shape[0] if isinstance(one.shape[0], int) else how.batch
    try:
        return tuple(empty_cache(one.name, one.kind, one.shape, read_genai_config(folder), batch).shape())
    except ColdpressError:
        return None


def _shape(one: Input, how: Try, is_later: bool, sizes: dict[str, int]) -> tuple[int, ...]:
    """The sizes of all axes; ``sizes`` holds those that names have got so far."""
    found = []
    for place, axis in enumerate(one.shape):
        if isinstance(axis, int):
            found.append(axis)
            continue
        is_picture = len(one.shape) == 4 and place == 1 and one.dtype.kind == "f"
        size = how.batch if place == 0 or (is_later and how.is_narrow) else _CHANNELS if is_picture else how.size
        found.append(size if axis is None else sizes.setdefault(axis, size))
    return tuple(found)


def _array(one: Input, shape: tuple[int, ...], how: Try, random: np.random.Generator) -> np.ndarray:
    name, dtype = one.name.lower(), one.dtype
    if dtype.kind == "c" or (dtype.kind == "V" and not np.issubdtype(dtype, np.floating)):
        raise ColdpressError(f"input '{one.name}' is {dtype}, for which no values are made up")
    if dtype.kind == "O":
        return texts(one, shape, random)
    if "mask" in name or name == "token_type_ids":
        return np.full(shape, "mask" in name, dtype)
    if name == "position_ids":
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
    if dtype.kind in "iu":
        return _whole(one, shape, how, random).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(random.integers(0, 2, shape), bool)
    return np.asarray(random.standard_normal(shape)).astype(dtype)


def texts(one: Input, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Texts for an input: those that the graph knows, and others."""
    return np.asarray(random.choice(np.array([*one.known, *_WORDS], dtype=object), shape), dtype=object)


def _whole(one: Input, shape: tuple[int, ...], how: Try, random: np.random.Generator) -> np.ndarray:
    if one.rows is not None:
        return np.asarray(random.integers(0, max(one.rows, 1), shape))
    if one.known:
        return np.asarray(random.choice(np.array(one.known), shape))
    if any(part in one.name.lower() for part in _LENGTHS):
        return np.full(shape, how.size)
    most = 128 if one.dtype.itemsize == 1 else how.most
    return np.asarray(random.integers(0, most, shape))
