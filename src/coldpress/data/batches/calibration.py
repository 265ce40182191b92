"""The windows of tokens that a model is calibrated on, from data of any kind that gives token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from coldpress.data.batches.loader import folder_of
from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import Batch, Context, DataSource

#: data where nobody says what to calibrate on: the text that coldpress ships
SHIPPED = DataSource("calibration_text")
#: windows of data that has no limit of its own
_USUAL_WINDOWS = 128
#: tokens of a row of data that says nothing of its length
_USUAL_TOKENS = 512
#: tokens for each different pair of them, from which on a text repeats itself; prose has 1.2 to 4, bytes some 20
_LEAST_VARIETY = 32


@dataclass(frozen=True, eq=False)
class Windows:
    """``ids`` int64 ``[windows, tokens]``; ``sources`` is a line for the report."""

    ids: np.ndarray
    sources: str

    @property
    def digest(self) -> str:
        """sha256, in hex, of the shape and the ids (int64, little-endian): equal for equal windows only."""
        content = hashlib.sha256(repr(self.ids.shape).encode())
        content.update(np.ascontiguousarray(self.ids, dtype="<i8").tobytes())
        return content.hexdigest()

    @property
    def pairs(self) -> int:
        """How many different pairs of neighbouring tokens there are."""
        return len(np.unique(np.stack([self.ids[:, :-1].ravel(), self.ids[:, 1:].ravel()]), axis=1).T)

    @property
    def repeats_itself(self) -> bool:
        """Whether the same few tokens come again and again: what is fitted to them says little about other text."""
        return self.pairs * _LEAST_VARIETY < self.tokens

    @property
    def tokens(self) -> int:
        """All tokens, each window's BOS included."""
        return int(self.ids.size)


def windows(source: DataSource, model: Model, ctx: Context) -> Windows:
    """The tokens of a source of data, as windows of one length.

    Rows of one length are windows as they are. Others are packed: without padding, one behind the other, cut into full
    windows as long as the longest row. Of data that says nothing of ``max_samples`` 128 rows are read.

    Raises ColdpressError for data without token ids, too little of it, and rows longer than the model's positions.
    """
    made = source.make()
    has_limit = any(getattr(made, name, None) for name in ("max_samples", "max_batches")) or source.type == SHIPPED.type
    origins: dict[str, None] = {}
    rows: list[np.ndarray] = []
    for batch in source.batches(model, ctx):
        origins[batch.origin or f"data of the kind {source.type}"] = None
        room = None if has_limit else _USUAL_WINDOWS - len(rows)
        rows += islice(_rows(batch, source.type), room)
        if not has_limit and len(rows) == _USUAL_WINDOWS:
            break
    length = max(map(len, rows))
    if length < 2:
        raise ColdpressError(f"data of the kind {source.type} has no row of two tokens", hint="give more text")
    if (most := positions(folder_of(model))) and length > most:
        raise ColdpressError(
            f"rows of {length} tokens; the model has {most} positions (max_position_embeddings)",
            hint=f"give the data a max_seq_len of {most} or less",
        )
    count = sum(map(len, rows)) // length
    ids = np.concatenate(rows)[: count * length].reshape(count, length).astype(np.int64)
    return Windows(ids, "; ".join(origins))


def _rows(batch: Batch, kind: str) -> Iterator[np.ndarray]:
    """The token ids of each sample, without padding."""
    ids = batch.inputs.get("input_ids")
    if ids is None or ids.ndim != 2:
        raise ColdpressError(
            f"a calibration reads token ids; data of the kind {kind} gives {', '.join(batch.inputs)}",
            hint="use data of the kind calibration_text or text_corpus",
        )
    for row, mask in zip(ids, batch.inputs.get("attention_mask", np.ones_like(ids)), strict=True):
        yield row[mask == 1]


def windows_needed(widest: int, length: int) -> int:
    """How many windows of ``length`` tokens a model needs whose widest layer has so many inputs."""
    from coldpress.quant.gptq import tokens_needed

    return -(-tokens_needed(widest) // length)


def expected_tokens(source: DataSource, widest: int) -> int:
    """About how many tokens `windows` will give for a model whose widest layer has so many inputs."""
    made = source.make()
    length = getattr(made, "max_seq_len", None) or _USUAL_TOKENS
    is_open = source.type == SHIPPED.type and getattr(made, "max_samples", None) is None
    count = windows_needed(widest, length) if is_open else getattr(made, "max_samples", None) or _USUAL_WINDOWS
    return int(count * length)


def positions(folder: Path) -> int | None:
    """How many tokens a model's config.json allows; None where it does not say."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    text = config.get("text_config") or {}
    return config.get("max_position_embeddings") or text.get("max_position_embeddings")
