"""Words with a class for each: names of people and places, parts of speech."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coldpress.data.batches.loader import Labels, PlacedRow, Reading, TokenizedRows
from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import Batch, Context, option

_NOT_SCORED = -100


@dataclass(frozen=True)
class TokenClassification(TokenizedRows):
    """Inputs as the model's tokenizer gives them; labels ``[samples, tokens]``, -100 where no word begins.

    Words and classes are lists, or texts with a blank between the words.
    """

    words_col: str = option("column with the words", "tokens")
    labels_col: str | None = option("column with their classes, by names or numbers; null: there is none", "ner_tags")
    label_all_tokens: bool = option("give every token the class of its word, not only the first one", False)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name in (self.words_col, self.labels_col) if name is not None)

    def open(self, model: Model, ctx: Context) -> Reading:
        tokenizer, options, labels = self.tokenizing(model)
        if not tokenizer.is_fast:
            raise ColdpressError(
                "this tokenizer does not tell which token belongs to which word", hint="save the fast one"
            )
        options["is_split_into_words"] = True

        def collate(group: list[PlacedRow]) -> Batch:
            encoded = tokenizer([_listed(row, self.words_col) for row in group], **options)
            return Batch(dict(encoded), self._labels(group, encoded, labels))

        return Reading(self.rows(), collate)

    def _labels(self, group: list[PlacedRow], encoded: Any, labels: Labels) -> np.ndarray | None:
        if self.labels_col is None:
            return None
        aligned = np.full_like(encoded["input_ids"], _NOT_SCORED, dtype=np.int64)
        for sample, row in enumerate(group):
            words, classes = _listed(row, self.words_col), _listed(row, self.labels_col)
            if len(words) != len(classes):
                raise ColdpressError(f"{row.where}: {len(words)} words, but {len(classes)} classes")
            known = [labels.index(one, row.where) for one in classes]
            before = None
            for token, word in enumerate(encoded.word_ids(sample)):
                if word is not None and (word != before or self.label_all_tokens):
                    aligned[sample, token] = known[word]
                before = word
        return aligned


def _listed(row: PlacedRow, column: str) -> list[Any]:
    value = row[column]
    if not isinstance(value, str | list | tuple):
        raise ColdpressError(f"{row.where}: column '{column}' holds no list, but {value!r}")
    return value.split() if isinstance(value, str) else list(value)
