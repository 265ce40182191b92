"""The rows that a model is trained on: token ids, and which of them the loss counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import Batch, Context, DataSource

#: as in PyTorch's cross entropy: what stands there is not predicted
NOT_SCORED = -100
#: rows that are held out where nobody says how many: a tenth, and at most so many
_USUAL_SHARE, _MOST_BY_ITSELF = 0.1, 64
#: with fewer rows than that none is held out without being asked for
_FEWEST_TO_SPLIT = 20

Ids = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Row:
    """``ids`` int32 ``[tokens]``; ``targets`` int32 ``[tokens]``: what is to be predicted at each place, or
    `NOT_SCORED`.

    A target is the id of the next token, so the last place has none.
    """

    ids: Ids
    targets: Ids

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Rows in their order.

    ``truncated``: how many lost their end; ``unscored``: how many had nothing to predict, and are left out.
    """

    rows: list[Row]
    truncated: int = 0
    unscored: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    @property
    def digest(self) -> str:
        """sha256, in hex, of all ids and targets and where rows end."""
        content = hashlib.sha256()
        for row in self.rows:
            content.update(len(row).to_bytes(8, "little"))
            content.update(row.ids.astype("<i4").tobytes() + row.targets.astype("<i4").tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class HeldOut:
    """Rows that are kept from training: ``size`` as a share below 1 or a count, or None for what is usual; or a set of
    their own."""

    size: float | None = None
    data: DataSource | None = None
    seed: int = field(default=0)

    def __post_init__(self) -> None:
        if self.size is None:
            return
        if self.data is not None:
            raise ColdpressError("eval_dataset_size has no effect with eval_data", hint="leave one of them out")
        if self.size < 0 or (self.size > 1 and self.size != int(self.size)) or self.size == 1:
            raise ColdpressError(
                f"eval_dataset_size is {self.size:g}; it is a share below 1, or a number of rows from 2 on",
                hint="0.1 holds a tenth of the rows out, 0 none",
            )

    def count(self, rows: int) -> int:
        """How many of so many rows are held out."""
        if self.size is None:
            return min(round(_USUAL_SHARE * rows), _MOST_BY_ITSELF) if rows >= _FEWEST_TO_SPLIT else 0
        return int(self.size) if self.size > 1 else max(1, round(self.size * rows)) if self.size else 0


def read_rows(source: DataSource, model: Model, ctx: Context, most_tokens: int | None) -> Rows:
    """All rows of a source of data; longer ones than the model's ``most_tokens`` lose their end.

    Raises ColdpressError for data without tokens or without a row, and for ids that the model does not have.
    """
    found: list[Row] = []
    truncated = unscored = 0
    for batch in source.batches(model, ctx):
        truncated += batch.truncated
        for ids, labels in _unpadded(batch, source.type):
            truncated += most_tokens is not None and len(ids) > most_tokens
            row = _row(ids[:most_tokens], labels[:most_tokens])
            if (row.targets == NOT_SCORED).all():
                unscored += 1
            else:
                found.append(row)
    if not found:
        raise ColdpressError(
            "no row of the data has a token to predict",
            hint="rows need two tokens or more, and answers within max_seq_len",
        )
    return Rows(found, truncated, unscored)


def split(rows: Rows, wanted: HeldOut) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out, drawn at random; each keeps the order. What was cut counts with the first."""
    count = wanted.count(len(rows))
    if count >= len(rows):
        raise ColdpressError(
            f"{count} rows are to be held out, and the data has {len(rows)}", hint="lower eval_dataset_size"
        )
    chosen = set(np.random.default_rng(wanted.seed).permutation(len(rows))[:count].tolist())
    kept = [row for place, row in enumerate(rows.rows) if place not in chosen]
    return Rows(kept, rows.truncated, rows.unscored), Rows([rows.rows[place] for place in sorted(chosen)])


def check_ids(rows: Rows, vocabulary: int) -> None:
    """Raise ColdpressError for an id that the embedding has no row for."""
    largest = max(int(row.ids.max()) for row in rows.rows)
    if largest >= vocabulary:
        raise ColdpressError(
            f"the tokenizer gives token {largest}, and the embedding has {vocabulary} rows",
            hint="the tokenizer belongs to another model",
        )


def _unpadded(batch: Batch, kind: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    if "input_ids" not in batch.inputs or not isinstance(batch.labels, np.ndarray) or batch.labels.ndim != 2:
        raise ColdpressError(
            f"a language model is trained on tokens; data of the kind {kind} gives none",
            hint="use data of the kind text_corpus",
        )
    masks = batch.inputs.get("attention_mask", np.ones_like(batch.inputs["input_ids"]))
    for ids, mask, labels in zip(batch.inputs["input_ids"], masks, batch.labels, strict=True):
        yield ids[mask == 1], labels[mask == 1]


def _row(ids: NDArray[Any], labels: NDArray[Any]) -> Row:
    targets = np.full(len(ids), NOT_SCORED, np.int32)
    targets[:-1] = labels[1:]
    return Row(np.asarray(ids, np.int32), targets)
