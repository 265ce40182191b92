"""Text to calibrate a language model on: windows of tokens, drawn at random from the user's text or the shipped one.

Texts are joined with the tokenizer's end token, if it has one, and cut into full windows, each starting with BOS if the
tokenizer adds one; a rest shorter than a window is dropped. Rows of several files are taken in turn (of up to 32 files
at a time). Of the first ``8 x max_samples`` windows ``max_samples`` are drawn without replacement, and nothing further
is read; fewer are all taken. Without ``data_name`` and ``data_files`` it is the text that coldpress ships, with as many
windows of each kind (prose, dialogue, code) as their lengths allow.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from coldpress.data.batches.calibration import positions, windows_needed
from coldpress.data.batches.loader import folder_of
from coldpress.data.texts.chat import read_chat_template
from coldpress.data.texts.documents import Documents
from coldpress.data.texts.rows import Row, Table, tables
from coldpress.data.texts.windows import Tokens, cut, draw
from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Batch, Context, Data, option

#: the shipped text; a line of three dashes ends a document of a .txt file
OWN_FOLDER = Path(__file__).parent / "texts" / "calibration"
_OWN_FILES = {"prose": "prose.txt", "dialogue": "dialogue.jsonl", "code": "code.txt"}

_FILES_AT_ONCE = 32


@dataclass(frozen=True)
class CalibrationText(Data):
    """Windows of one length: inputs ``input_ids`` and ``attention_mask``, labels the ids themselves."""

    data_name: str | None = option("json, csv, parquet or text; or the id of a data set on the Hugging Face hub", None)
    data_files: tuple[str, ...] = option("files with the rows, or globs; without any, coldpress's own text", ())
    subset: str | None = option("which configuration of a hub data set", None)
    split: str = option("which split of a hub data set", "train")
    text_template: str | None = option('format string over the columns, such as "{question} {answer}"', None)
    chat_template: bool | None = option(
        "true: every text is a user message in the model's chat template; false: none is; null: conversations are", None
    )
    max_seq_len: int = option("tokens in a window", 512)
    max_samples: int | None = option("windows at most; null: as many as the widest layer needs", 128)

    reads: ClassVar[tuple[str, ...]] = ("data_files",)

    def __post_init__(self) -> None:
        if self.max_samples is not None and self.max_samples < 1:
            raise ColdpressError(
                f"max_samples is {self.max_samples}; at least 1 is needed", hint="leave it out: 128 is usual"
            )
        if self.max_seq_len < 2:
            raise ColdpressError(
                f"max_seq_len is {self.max_seq_len}; at least 2 are needed", hint="leave it out: 512 is usual"
            )
        if self.text_template is not None and self._is_own:
            raise ColdpressError(
                "text_template is for data of your own; the shipped calibration text has no fields",
                hint="name the data with data_name or data_files",
            )

    def check(self, model: Model | Planned) -> None:
        if self.data_files:
            self._tables()

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        folder = folder_of(model)
        tokens = Tokens(folder)
        sized = self if self.max_samples is not None else self._fitting(model)
        sized._check_length(folder, len(tokens.start))
        streams = sized._streams(folder)
        random = np.random.default_rng(ctx.seed)
        length = sized.max_seq_len - len(tokens.start)
        count = sized.max_samples or 0
        drawn = [draw(cut(stream.counted(tokens), length), count, random) for stream in streams]
        pieces = _in_turn(drawn, count, random)
        if not pieces:
            raise sized._too_short(streams, len(tokens.start))
        origin = sized._described([stream for stream, found in zip(streams, drawn, strict=True) if found])
        for piece in pieces:
            ids = np.array([[*tokens.start, *piece]], dtype=np.int64)
            yield Batch({"input_ids": ids, "attention_mask": np.ones_like(ids)}, ids, origin=origin)

    def _fitting(self, model: Model) -> CalibrationText:
        """As many windows as the widest layer of a model needs, none longer than the model takes."""
        if model.format != "hf":
            raise ColdpressError(
                f"how many windows a {model.format} model needs is not known", hint="give max_samples a number"
            )
        short = replace(self, max_seq_len=min(self.max_seq_len, positions(model.path) or self.max_seq_len))
        widest = max(
            (span.shape[1] for span in Checkpoint(model.path).tensors.values() if len(span.shape) == 2), default=1
        )
        return replace(short, max_samples=windows_needed(widest, short.max_seq_len))

    @property
    def _is_own(self) -> bool:
        return self.data_name is None and not self.data_files

    def _tables(self) -> list[Table]:
        return tables(self.data_name, self.data_files, self.split, self.subset)

    def _streams(self, folder: Path) -> list[_Stream]:
        """One stream for the user's data; one for each kind of the shipped text."""
        chat = read_chat_template(folder)
        documents = partial(Documents, self.text_template, self.chat_template, chat)
        if self._is_own:
            return [_Stream(kind, _own_tables(file), documents()) for kind, file in _OWN_FILES.items()]
        named = self._tables()
        return [_Stream(_names(named), named, documents())]

    def _check_length(self, folder: Path, start_length: int) -> None:
        if self.max_seq_len < start_length + 2:
            raise ColdpressError(f"max_seq_len is {self.max_seq_len}; at least {start_length + 2} are needed")
        most = positions(folder)
        if most and self.max_seq_len > most:
            raise ColdpressError(
                f"max_seq_len is {self.max_seq_len}; the model has {most} positions (max_position_embeddings)",
                hint=f"use a max_seq_len of {most} or less",
            )

    def _too_short(self, streams: list[_Stream], start_length: int) -> ColdpressError:
        found = ", ".join(f"{stream.name} {stream.tokens} tokens" for stream in streams)
        longest = max(stream.tokens for stream in streams)
        shorter = f", or shorter windows: max_seq_len {longest + start_length}" if longest > 1 else ""
        return ColdpressError(
            f"too little calibration text for one window of {self.max_seq_len} tokens: {found}",
            hint=f"give more text{shorter}",
        )

    def _described(self, streams: list[_Stream]) -> str:
        """Where the text is from, for a report."""
        if self._is_own:
            return f"coldpress's own text: {', '.join(stream.name for stream in streams)}"
        [stream] = streams
        count = stream.documents.rows
        unit = "row" if stream.tables[0].format != "text" else "line"
        return f"{stream.name}, {'' if stream.is_whole else 'first '}{count} {unit}{'' if count == 1 else 's'}"


# Where the texts come from


@dataclass
class _Stream:
    """The texts of some tables, one of each table in turn; ``tokens`` read so far, ``is_whole`` once all were read."""

    name: str
    tables: list[Table]
    documents: Documents
    tokens: int = 0
    is_whole: bool = False

    def texts(self) -> Iterator[str]:
        waiting = map(self.documents.of, self.tables)
        open_now = deque(islice(waiting, _FILES_AT_ONCE))
        while open_now:
            texts = open_now.popleft()
            text = next(texts, None)
            if text is not None:
                yield text
                open_now.append(texts)
            elif (following := next(waiting, None)) is not None:
                open_now.append(following)
        self.is_whole = True

    def counted(self, tokens: Tokens) -> Iterator[list[int]]:
        for ids in tokens.joined(self.texts()):
            self.tokens += len(ids)
            yield ids


def _own_tables(file: str) -> list[Table]:
    path = OWN_FOLDER / file
    if path.suffix == ".jsonl":
        return tables("json", [path])
    return [Table(str(path), "documents", partial(_own_documents, path))]


def _own_documents(path: Path) -> Iterator[Row]:
    for document in re.split(r"^---$\n?", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        yield {"text": document.strip("\n")}


# From texts to windows


def _in_turn(drawn: list[list[tuple[int, np.ndarray]]], count: int, random: np.random.Generator) -> list[np.ndarray]:
    """``count`` pieces, as many of each stream as there are; in the order of their places, streams in turn."""
    shares = _shares([len(found) for found in drawn], count)
    taken = [
        (place, stream, piece)
        for stream, (found, share) in enumerate(zip(drawn, shares, strict=True))
        for place, piece in (found[index] for index in random.permutation(len(found))[:share])
    ]
    return [piece for _, _, piece in sorted(taken, key=lambda entry: entry[:2])]


def _shares(available: list[int], count: int) -> list[int]:
    """``count`` split evenly, what one cannot give taken from the others; the first ones give the odd ones."""
    shares = [0] * len(available)
    while count > 0 and shares != available:
        for index, most in enumerate(available):
            if count > 0 and shares[index] < most:
                shares[index] += 1
                count -= 1
    return shares


def _names(named: list[Table]) -> str:
    names = [table.name if table.format == "hub" else Path(table.name).name for table in named]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
