"""From samples, one after the other, to batches: what the kinds of data that read files share."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

from coldpress.data.texts.rows import Row, Table, tables
from coldpress.data.texts.tokenization import longest_input, pretrained_tokenizer
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Batch, Context, Data, option

_SHUFFLED_AT_ONCE = 4096


@dataclass(frozen=True)
class Reading:
    """A data set opened for one model: ``items``, light things such as paths and rows, and how some become a batch."""

    items: Iterable[Any]
    collate: Callable[[list[Any]], Batch]


@dataclass(frozen=True)
class Loader(Data):
    """Data that is read item by item. A subclass says how in ``open``."""

    batch_size: int = option("samples in a batch", 1)
    max_samples: int | None = option("at most so many samples", None)
    shuffle: bool = option("take the samples in random order, those of long files at random among the next 4096", False)
    seed: int = option("decides the random choices", 0)
    drop_last: bool = option("leave out a last batch that is not full", False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ColdpressError(f"{name} is {count}; at least 1 is needed")

    def open(self, model: Model, ctx: Context) -> Reading:
        """The items of the data and how they become what ``model`` takes."""
        raise NotImplementedError

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        reading = self.open(model, ctx)
        items = _shuffled(reading.items, random.Random(self.seed)) if self.shuffle else iter(reading.items)
        chosen = islice(items, self.max_samples)
        while group := list(islice(chosen, self.batch_size)):
            if len(group) == self.batch_size or not self.drop_last:
                yield reading.collate(group)


def _shuffled(items: Iterable[Any], chance: random.Random) -> Iterator[Any]:
    """All items of a sequence in random order; of a stream, each time one of the next few at random."""
    if isinstance(items, Sequence):
        yield from (items[index] for index in chance.sample(range(len(items)), len(items)))
        return
    held: list[Any] = []
    for item in items:
        if len(held) < _SHUFFLED_AT_ONCE:
            held.append(item)
            continue
        place = chance.randrange(len(held))
        yield held[place]
        held[place] = item
    yield from chance.sample(held, len(held))


@dataclass(frozen=True)
class PlacedRow:
    """A row, and where it stands: ``sms.csv, row 3``."""

    where: str
    row: Row

    def __getitem__(self, column: str) -> Any:
        """A field; ColdpressError with the columns that there are when it is not among them or empty."""
        if column not in self.row:
            found = ", ".join(map(str, self.row)) or "none"
            raise ColdpressError(
                f"{self.where}: no column '{column}'; found: {found}", hint=did_you_mean(column, map(str, self.row))
            )
        if self.row[column] is None:
            raise ColdpressError(f"{self.where}: nothing stands in column '{column}'")
        return self.row[column]


@dataclass(frozen=True)
class RowLoader(Loader):
    """Data that lies in the rows of tables."""

    data_name: str | None = option("json, csv, parquet or text; or the id of a data set on the Hugging Face hub", None)
    data_files: tuple[str, ...] = option("files with the rows, or globs", ())
    subset: str | None = option("which configuration of a hub data set", None)
    split: str = option("which split of a hub data set", "train")

    reads: ClassVar[tuple[str, ...]] = ("data_files",)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return ()

    def tables(self) -> list[Table]:
        """The files or the hub data set, found but not read; ColdpressError where there is none."""
        if self.data_name is None and not self.data_files:
            raise ColdpressError("data without rows: neither data_name nor data_files is given")
        return tables(self.data_name, self.data_files, self.split, self.subset)

    def rows(self) -> Iterator[PlacedRow]:
        """Every row with its place."""
        return chain.from_iterable(map(placed_rows, self.tables()))

    def check(self, model: Model | Planned) -> None:
        first = next(self.rows())
        for column in self.columns:
            first[column]


def placed_rows(table: Table) -> Iterator[PlacedRow]:
    return (PlacedRow(f"{table.name}, row {number}", row) for number, row in enumerate(table, start=1))


@dataclass(frozen=True)
class TokenizedRows(RowLoader):
    """Rows whose texts go through the model's tokenizer, with classes for what is in them."""

    label_names: tuple[str, ...] = option("names of the classes in the order of the model's outputs", ())
    max_seq_len: int | None = option("cut off what is longer, in tokens; left out: what the model takes", None)
    pad_to_max_len: bool = option("fill up every text to max_seq_len, not only to the longest of its batch", False)
    tokenizer: str | None = option("folder with the tokenizer, if the model has none", None)

    reads: ClassVar[tuple[str, ...]] = ("data_files", "tokenizer")
    needs: ClassVar[tuple[str, ...]] = ("transformers",)

    def tokenizing(self, model: Model) -> tuple[Any, dict[str, Any], Labels]:
        """The tokenizer, how to call it, and the classes."""
        tokenizer = pretrained_tokenizer(Path(self.tokenizer) if self.tokenizer else folder_of(model))
        longest = longest_input(tokenizer, self.max_seq_len)
        if self.pad_to_max_len and longest is None:
            raise ColdpressError("pad_to_max_len needs max_seq_len: nothing says how many tokens the model takes")
        options = {
            "truncation": longest is not None,
            "max_length": longest,
            "padding": "max_length" if self.pad_to_max_len else True,
            "return_tensors": "np",
        }
        return tokenizer, options, Labels.of(self.label_names, folder_of(model))


@dataclass(frozen=True)
class Labels:
    """Which number stands for which label. Without names labels must be numbers already."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], folder: Path) -> Labels:
        """The names that the user gave, else those that the config.json of a model folder gives its outputs."""
        file = folder / "config.json"
        if names or not file.is_file():
            return cls(tuple(names))
        known = json.loads(file.read_text(encoding="utf-8")).get("id2label") or {}
        numbered = tuple(str(name) for _, name in sorted(known.items(), key=lambda pair: int(pair[0])))
        return cls(() if numbered == tuple(f"LABEL_{index}" for index in range(len(numbered))) else numbered)

    def index(self, value: Any, where: str) -> int:
        """The number of a label, given by its name or as a number; ColdpressError for one that is not known."""
        text = str(value).strip()
        if text in self.names:
            return self.names.index(text)
        if isinstance(value, bool) or not text.isdecimal():
            if not self.names:
                raise ColdpressError(
                    f"{where}: the label '{text}' is no whole number, and nothing says which one it stands for",
                    hint="give label_names, in the order of the model's outputs",
                )
            raise self._unknown(text, where)
        if self.names and int(text) >= len(self.names):
            raise self._unknown(text, where)
        return int(text)

    def _unknown(self, label: str, where: str) -> ColdpressError:
        shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
        return ColdpressError(
            f"{where}: the label '{label}' is not among {shown}", hint=did_you_mean(label, self.names)
        )


def folder_of(model: Model) -> Path:
    """The folder of a model, whose tokenizer and settings lie there, too."""
    return model.path if model.path.is_dir() else model.path.parent
