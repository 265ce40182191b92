"""Texts, or pairs of texts, with a class for each: spam or not, which sentiment, does one sentence follow from
another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coldpress.data.batches.loader import Labels, PlacedRow, Reading, TokenizedRows
from coldpress.models.model import Model
from coldpress.parts import Batch, Context, option


@dataclass(frozen=True)
class TextClassification(TokenizedRows):
    """Inputs as the model's tokenizer gives them, filled up to the longest text of a batch; labels ``[samples]``."""

    text_col: str = option("column with the text", "text")
    pair_col: str | None = option("column with the second text of a pair", None)
    label_col: str | None = option("column with the class, by name or number; null: there is none", "label")

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name in (self.text_col, self.pair_col, self.label_col) if name is not None)

    def open(self, model: Model, ctx: Context) -> Reading:
        tokenizer, options, labels = self.tokenizing(model)

        def collate(group: list[PlacedRow]) -> Batch:
            texts = [str(row[self.text_col]) for row in group]
            pairs = None if self.pair_col is None else [str(row[self.pair_col]) for row in group]
            return Batch(dict(tokenizer(texts, pairs, **options)), self._labels(group, labels))

        return Reading(self.rows(), collate)

    def _labels(self, group: list[PlacedRow], labels: Labels) -> np.ndarray | None:
        if self.label_col is None:
            return None
        return np.array([labels.index(row[self.label_col], row.where) for row in group], dtype=np.int64)
