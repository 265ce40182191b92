"""Prompts for language models, with the answer that is right: what a model says is compared with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from coldpress.data.batches.loader import PlacedRow, Reading, RowLoader, folder_of
from coldpress.data.texts.chat import read_chat_template
from coldpress.data.texts.documents import Documents
from coldpress.data.texts.windows import Tokens
from coldpress.models.model import Model
from coldpress.parts import Batch, Context, option


@dataclass(frozen=True)
class Prompts(RowLoader):
    """Inputs ``input_ids`` and ``attention_mask``, filled up on the left; labels are texts."""

    text_cols: tuple[str, ...] = option("columns that are the prompt, a blank between them", ())
    text_template: str | None = option('format string over the columns, such as "Question: {question} Answer:"', None)
    chat_template: bool | None = option(
        "true: every prompt is a user message in the model's chat template; false: none is; left out: only lists of"
        " messages",
        None,
    )
    answer_col: str = option("column with the right answer", "answer")
    tokenizer: str | None = option("folder with the tokenizer, if the model has none", None)

    reads: ClassVar[tuple[str, ...]] = ("data_files", "tokenizer")
    version: ClassVar[int] = 2

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.text_cols, self.answer_col)

    def open(self, model: Model, ctx: Context) -> Reading:
        folder = Path(self.tokenizer) if self.tokenizer else folder_of(model)
        tokens = Tokens(folder)
        documents = Documents(self.text_template, self.chat_template, read_chat_template(folder), self.text_cols, True)
        return Reading(self._prompts(documents, tokens), lambda group: _batch(group, tokens.pad))

    def _prompts(self, documents: Documents, tokens: Tokens) -> Iterator[tuple[list[int], str]]:
        for table in self.tables():
            for number, (row, text) in enumerate(documents.with_rows(table), start=1):
                answer = PlacedRow(f"{table.name}, row {number}", row)[self.answer_col]
                start = tokens.start_of(text, documents.by_template)
                yield [*start, *tokens.of(text)], str(answer)


def _batch(group: list[tuple[list[int], str]], pad: int) -> Batch:
    length = max(len(ids) for ids, _ in group)
    ids = np.full((len(group), length), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (prompt, _) in enumerate(group):
        ids[row, length - len(prompt) :], mask[row, length - len(prompt) :] = prompt, 1
    return Batch({"input_ids": ids, "attention_mask": mask}, [answer for _, answer in group])
