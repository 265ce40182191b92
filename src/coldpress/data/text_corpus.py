"""Text for language models: files of any length, read as they are needed, as windows of tokens.

Rows come from JSON lines, JSON, CSV, Parquet or plain text files (packed with gzip or not), or from the Hugging Face
hub; what is text in them says a template, some columns, or the model's chat template. ``strategy`` says how texts
become windows:

- ``join``: all texts one behind the other, cut into full windows
- ``sliding_window``: the same, a window every ``stride`` tokens; tokens that a window shares with the one before are
  not scored again
- ``line_by_line``: each text a window of its own, cut off where it is too long
- ``join_random``, ``line_by_line_random``: ``max_samples`` of the first ``8 x max_samples`` windows, drawn at random
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np

from coldpress.data.batches.loader import Reading, RowLoader, folder_of
from coldpress.data.texts.chat import ChatTemplate, read_chat_template, special_tokens
from coldpress.data.texts.documents import Documents
from coldpress.data.texts.rows import Table
from coldpress.data.texts.windows import Tokens, cut, draw
from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Batch, Context, option

_STRATEGIES = ("join", "join_random", "sliding_window", "line_by_line", "line_by_line_random")
#: labels that count for nothing, as in PyTorch's cross entropy
_NOT_SCORED = -100


@dataclass(frozen=True)
class TextCorpus(RowLoader):
    """Windows of tokens: inputs ``input_ids`` and ``attention_mask``, labels the ids themselves."""

    text_cols: tuple[str, ...] = option("columns that are the text, a blank between them", ())
    text_template: str | None = option('format string over the columns, such as "{question} {answer}"', None)
    chat_template: bool | str | None = option(
        "true: every text is a user message in the model's chat template; false: none is; or a Jinja template of"
        " one's own",
        None,
    )
    strategy: str = option("how texts become windows", "join", _STRATEGIES)
    max_seq_len: int = option("tokens in a window", 1024)
    stride: int | None = option("tokens from one sliding window to the next", None)
    joiner: str | None = option("text between joined texts; left out: the tokenizer's end token", None)
    pad_to_max_len: bool = option("fill up short windows to max_seq_len, not only to the longest of their batch", False)
    padding_side: str = option("where short windows are filled up", "right", ("left", "right"))
    drop_short_sequences: bool = option("leave out windows shorter than max_seq_len", False)
    tokenizer: str | None = option("folder with the tokenizer, if the model has none", None)
    end_token: bool = option(
        "end each text with the tokenizer's end token; joined texts have it between them anyway", False
    )
    answers_only: bool = option(
        "score only answers: what a template writes from its last field on, or the assistant's messages", False
    )

    reads: ClassVar[tuple[str, ...]] = ("data_files", "tokenizer")
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_cols and self.text_template is not None:
            raise ColdpressError(
                "text_cols has no effect with a text_template", hint="name the columns in the template"
            )
        if self.strategy.endswith("_random") and self.max_samples is None:
            raise ColdpressError(f"strategy {self.strategy} needs max_samples: how many windows to draw")
        if (self.stride is None) == (self.strategy == "sliding_window"):
            raise ColdpressError(
                f"stride goes with the strategy sliding_window, and only with it; found {self.strategy}"
            )
        if self.stride is not None and not 0 < self.stride <= self.max_seq_len:
            raise ColdpressError(f"stride is {self.stride}; it must be from 1 to max_seq_len, {self.max_seq_len}")
        if self.joiner is not None and self._is_by_line:
            raise ColdpressError("joiner has no effect where texts are not joined", hint="use strategy join")
        for name in ("end_token", "answers_only"):
            if getattr(self, name) and not self._is_by_line:
                raise ColdpressError(f"{name} has no effect where texts are joined", hint="use strategy line_by_line")

    @property
    def columns(self) -> tuple[str, ...]:
        return self.text_cols

    @property
    def _is_by_line(self) -> bool:
        return self.strategy.startswith("line_by_line")

    def check(self, model: Model | Planned) -> None:
        super().check(model)
        documents = Documents(self.text_template, None, None, self.text_cols)
        next(documents.of(self.tables()[0]), None)

    def open(self, model: Model, ctx: Context) -> Reading:
        folder = Path(self.tokenizer) if self.tokenizer else folder_of(model)
        tokens = Tokens(folder)
        if self.max_seq_len < len(tokens.start) + 2:
            raise ColdpressError(f"max_seq_len is {self.max_seq_len}; at least {len(tokens.start) + 2} are needed")
        windows = self._windows(tokens, self._documents(folder))
        if self.drop_short_sequences:
            windows = (one for one in windows if len(one.ids) == self.max_seq_len)
        if self.strategy.endswith("_random"):
            assert self.max_samples is not None
            windows = self._drawn(windows, self.max_samples)
        return Reading(windows, lambda group: self._batch(group, tokens.pad))

    def _documents(self, folder: Path) -> Documents:
        chat = read_chat_template(folder)
        if isinstance(self.chat_template, str):
            chat = ChatTemplate(self.chat_template, special_tokens(folder))
        wraps = True if isinstance(self.chat_template, str) else self.chat_template
        return Documents(self.text_template, wraps, chat, self.text_cols)

    def _windows(self, tokens: Tokens, documents: Documents) -> Iterator[_Window]:
        if self._is_by_line:
            for table in self.tables():
                yield from self._by_line(tokens, documents, table)
            return
        room, texts = self.max_seq_len - len(tokens.start), chain.from_iterable(map(documents.of, self.tables()))
        stride = None if self.stride is None else min(self.stride, room)
        seen = 0
        for piece in cut(tokens.joined(texts, self.joiner), room, stride, rest=True):
            ids = np.array([*tokens.start, *piece], dtype=np.int64)
            yield _Window(ids, np.arange(len(ids)) >= (len(tokens.start) + seen if seen else 0))
            seen = 0 if stride is None else room - stride

    def _by_line(self, tokens: Tokens, documents: Documents, table: Table) -> Iterator[_Window]:
        """A window for each text, those without a word left out."""
        if self.answers_only:
            answered = documents.with_answers(table)
        else:
            answered = ((text, [(0, len(text))]) for _, text in documents.with_rows(table))
        for text, answers in answered:
            if not text.strip():
                continue
            start = tokens.start_of(text, documents.by_template)
            ids = [*start, *(tokens.ended(text) if self.end_token else tokens.of(text))]
            is_scored = np.ones(len(ids), dtype=bool)
            if self.answers_only:
                is_scored = _scored(tokens, text, answers, len(start), len(ids))
            kept = np.array(ids[: self.max_seq_len], dtype=np.int64)
            yield _Window(kept, is_scored[: self.max_seq_len], len(ids) > self.max_seq_len)

    def _drawn(self, windows: Iterator[_Window], count: int) -> Iterator[_Window]:
        drawn = draw(windows, count, np.random.default_rng(self.seed))
        return (window for _, window in sorted(drawn, key=lambda placed: placed[0]))

    def _batch(self, group: list[_Window], pad: int) -> Batch:
        length = self.max_seq_len if self.pad_to_max_len else max(len(window.ids) for window in group)
        ids = np.full((len(group), length), pad, dtype=np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, _NOT_SCORED)
        for row, window in enumerate(group):
            filled = slice(length - len(window.ids), None) if self.padding_side == "left" else slice(len(window.ids))
            ids[row, filled], mask[row, filled] = window.ids, 1
            labels[row, filled] = np.where(window.is_scored, window.ids, _NOT_SCORED)
        return Batch({"input_ids": ids, "attention_mask": mask}, labels, sum(window.is_cut for window in group))


@dataclass(frozen=True, eq=False)
class _Window:
    """``ids`` int64 ``[tokens]``, and which of them are scored; ``is_cut``: whether the text goes on."""

    ids: np.ndarray
    is_scored: np.ndarray
    is_cut: bool = False


def _scored(tokens: Tokens, text: str, answers: list[tuple[int, int]], first: int, count: int) -> np.ndarray:
    """Which of the ``count`` ids of a window belong to answers: those that begin in one, and the end after the last.

    ``first``: where the ids of the text begin.
    """
    places = np.array(tokens.places(text))
    within = np.zeros(count, dtype=bool)
    for start, stop in answers:
        within[first : first + len(places)] |= (places >= start) & (places < stop)
    within[first + len(places) :] = bool(answers) and answers[-1][1] == len(text)
    return within
