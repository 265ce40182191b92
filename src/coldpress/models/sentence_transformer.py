"""What a folder of sentence-transformers says of its embeddings: how the vectors of tokens become that of a text.

Such a folder has a ``modules.json`` beside config.json, which names modules that follow on the network:
https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError

#: what 1_Pooling/config.json calls the ways of pooling -> how they are called here; in the order of their vectors
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "last",
}
_UNKNOWN = ("pooling_mode_weightedmean_tokens",)


@dataclass(frozen=True)
class Pooling:
    """``modes``: each gives a vector; several are put one after the other. ``normalizes``: to length 1."""

    modes: tuple[str, ...]
    normalizes: bool = False

    def of(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The vectors ``[texts, size]`` of texts, from those of their tokens ``[texts, tokens, hidden]``; ``mask``
        ``[texts, tokens]`` is 0 for padding, which is on the right."""
        shown = mask[..., None].astype(tokens.dtype)
        counts = shown.sum(axis=1)
        ways = {
            "cls": lambda: tokens[:, 0],
            "mean": lambda: (tokens * shown).sum(axis=1) / counts,
            "max": lambda: np.where(shown > 0, tokens, -np.inf).max(axis=1),
            "mean_sqrt_len": lambda: (tokens * shown).sum(axis=1) / np.sqrt(counts),
            "last": lambda: tokens[np.arange(len(tokens)), mask.sum(axis=1) - 1],
        }
        found = np.concatenate([ways[mode]() for mode in self.modes], axis=-1)
        return found / np.linalg.norm(found, axis=-1, keepdims=True) if self.normalizes else found


def read_pooling(folder: Path) -> Pooling | None:
    """The pooling of a folder; None where it is none of sentence-transformers.

    Raises ColdpressError for modules beyond a network, pooling and normalization, which would be left out in silence.
    """
    if not (folder / "modules.json").is_file():
        return None
    pooling, normalizes = None, False
    for module in sorted(_read(folder / "modules.json"), key=lambda one: int(one["idx"])):
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _modes(folder / module["path"] / "config.json")
        elif kind == "Normalize":
            normalizes = True
        elif kind != "Transformer":
            raise ColdpressError(
                f"{folder / 'modules.json'}: the module {kind} ({module['path']}) has no place in the graph",
                hint="remove modules.json to press the network alone; its outputs are then vectors of tokens",
            )
    return Pooling(pooling, normalizes) if pooling else None


def _modes(file: Path) -> tuple[str, ...]:
    settings = _read(file)
    unknown = [name for name in _UNKNOWN if settings.get(name)]
    modes = tuple(mode for name, mode in _MODES.items() if settings.get(name))
    if unknown or not modes:
        raise ColdpressError(
            f"{file}: {unknown[0] if unknown else 'no way of pooling'} is not known",
            hint=f"known: {', '.join(_MODES)}",
        )
    return modes


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ColdpressError(f"{file} cannot be read: {error}") from error
