"""The rows of a data set as dictionaries, one at a time: from local files, or from a data set on the Hugging Face
hub."""

from __future__ import annotations

import csv
import difflib
import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, cast

from coldpress.data.texts.json_array import objects_of_array
from coldpress.data.texts.text_file import open_text
from coldpress.errors import ColdpressError, NotAtHand, did_you_mean

Row = dict[str, Any]

_SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
_LONGEST_FIELD = 1 << 24
_INSTALL = "pip install 'coldpress[data]'"


@dataclass(frozen=True)
class Table:
    """One file, or one split of a hub data set: iterate over it for its rows, as often as you like.

    ``format`` is json, csv, parquet, text or hub. Iterating raises ColdpressError where the data cannot be read, and at
    the end when there was no row at all.
    """

    name: str
    format: str
    read: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        is_empty = True
        for row in self.read():
            is_empty = False
            yield row
        if is_empty:
            raise ColdpressError(
                f"{self.name} has no rows", hint="is it the right file, and was it written to its end?"
            )


def rows(data_name: str | None, data_files: Sequence[str | Path] = (), split: str = "train") -> Iterator[Row]:
    """All rows of the data that ``tables`` finds, one table after the other."""
    return chain.from_iterable(tables(data_name, data_files, split))


def tables(
    data_name: str | None, data_files: Sequence[str | Path] = (), split: str = "train", subset: str | None = None
) -> list[Table]:
    """The files, or the hub data set, that a user means.

    ``data_name`` is json (one object a line, or one array of objects), csv (the first line names the columns), parquet
    or text (a row for each line, in the field ``text``) with ``data_files``, which are paths or globs; left out, the
    suffixes tell. Files may be packed with gzip (``.gz``), parquet aside. Any other ``data_name`` is the id of a data
    set on the hub, whose ``split`` (of its ``subset``) is streamed; ``data_files`` are then files of its repository.

    Raises ColdpressError before anything is read when a file is missing, a name or suffix is not known, the library
    that is needed is not installed, or the hub does not answer.
    """
    patterns = [data_files] if isinstance(data_files, str | Path) else list(data_files)
    if data_name is not None and data_name not in _READERS:
        _refuse_slips(data_name, bool(patterns))
        return [_on_hub(data_name, [str(name) for name in patterns], split, subset)]
    if not patterns:
        raise ColdpressError(f"data_name '{data_name}' needs files", hint="name them with --data_files")
    if split != "train":
        raise ColdpressError(f"local files have no split '{split}'", hint="name the files of that split")
    if subset is not None:
        raise ColdpressError(f"local files have no subset '{subset}'", hint="name the files of that subset")
    files = list(dict.fromkeys(file for pattern in patterns for file in _matching(str(pattern))))
    kind = data_name or _format_by_suffix(files)
    if kind == "parquet":
        _library("pyarrow.parquet", "reading parquet files")
    return [Table(str(file), kind, partial(_READERS[kind], file)) for file in files]


# What was asked for


def _refuse_slips(data_name: str, has_files: bool) -> None:
    """Refuse a name that cannot be, or hardly is, the id of a hub data set."""
    if Path(data_name).exists():
        raise ColdpressError(f"data_name '{data_name}' is a path", hint="name files with --data_files")
    looks_like_format = difflib.get_close_matches(data_name, _READERS, n=1, cutoff=0.7)
    if "/" not in data_name and (has_files or looks_like_format):
        raise ColdpressError(f"unknown data_name '{data_name}'", hint=did_you_mean(data_name, _READERS))


def _matching(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise ColdpressError(f"data file {pattern} is a folder", hint=f"name its files, e.g. '{path / '*.jsonl'}'")
    if path.exists():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
    if found:
        return found
    if glob.has_magic(pattern):
        raise NotAtHand(f"no data file matches {pattern}", hint=f"the working directory is {Path.cwd()}")
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {path.parent / close[0]}?" if close else f"the working directory is {Path.cwd()}"
    raise NotAtHand(f"data file {pattern} does not exist", hint=hint)


def _format_by_suffix(files: list[Path]) -> str:
    formats: dict[str, Path] = {}
    for file in files:
        kind = _SUFFIXES.get(_suffix(file))
        if kind is None:
            known = ", ".join(_SUFFIXES)
            raise ColdpressError(
                f"{file}: what is in a file with the suffix '{_suffix(file)}' is not known (known: {known})",
                hint=f"say what it is with --data_name {' | '.join(_READERS)}",
            )
        formats.setdefault(kind, file)
    if len(formats) > 1:
        seen = ", ".join(f"{file} ({kind})" for kind, file in formats.items())
        raise ColdpressError(f"data files of several formats: {seen}", hint="use files of one format")
    return next(iter(formats))


def _suffix(file: Path) -> str:
    """The suffix that tells the format, in lower case: ``.jsonl`` for ``a.jsonl`` and ``a.jsonl.gz``."""
    plain = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return plain.suffix.lower()


# Local files


def _json_rows(file: Path) -> Iterator[Row]:
    with open_text(file) as stream:
        pieces = iter(partial(stream.read, 4096), "")
        first = next((start for piece in pieces if (start := piece.lstrip()[:1])), "")
    yield from objects_of_array(file) if first == "[" else _json_lines(file)


def _json_lines(file: Path) -> Iterator[Row]:
    with open_text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parsed(file, number, line)


def _parsed(file: Path, number: int, line: str) -> Row:
    where, seen = f"{file}, line {number}", line.strip()[:80]
    hint = "one JSON object with fields on each line, or one array of such objects"
    try:
        row = json.loads(line)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise ColdpressError(f"{where}: not JSON ({reason}): {seen}", hint=hint) from None
    if not isinstance(row, dict):
        raise ColdpressError(f"{where}: no object with fields: {seen}", hint=hint)
    return row


def _csv_rows(file: Path) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    with open_text(file, newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if _suffix(file) == ".tsv" else ",", strict=True)
        try:
            columns = list(reader.fieldnames or ())
            if twice := sorted({name for name in columns if columns.count(name) > 1}):
                raise ColdpressError(f"{file}: several columns are named '{twice[0]}'")
            for row in reader:
                if None in row:
                    found = len(columns) + len(cast("Any", row)[None])
                    where = f"{file}, line {reader.line_num}"
                    raise ColdpressError(f"{where}: {found} values, but {len(columns)} columns")
                yield row
        except csv.Error as error:
            raise ColdpressError(f"{file}, line {reader.line_num}: not CSV ({error})") from None


def _parquet_rows(file: Path) -> Iterator[Row]:
    parquet = _library("pyarrow.parquet", "reading parquet files")
    try:
        with parquet.ParquetFile(file) as content:
            for batch in content.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (OSError, ValueError, NotImplementedError) as error:
        raise ColdpressError(f"cannot read {file}: {_first_line(error)}") from error


def _text_rows(file: Path) -> Iterator[Row]:
    with open_text(file) as stream:
        for line in stream:
            yield {"text": line.rstrip("\n")}


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "json": _json_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
    "text": _text_rows,
}


# The hub


def _on_hub(name: str, files: list[str], split: str, subset: str | None) -> Table:
    datasets = _library("datasets", f"'{name}', a data set on the Hugging Face hub,")
    broken = _hub_errors()
    try:
        streamed = datasets.load_dataset(name, subset, data_files=files or None, split=split, streaming=True)
    except broken as error:
        raise _hub_failed(name, error) from error

    def read() -> Iterator[Row]:
        try:
            yield from map(dict, streamed)
        except broken as error:
            raise _hub_failed(name, error) from error

    return Table(name, "hub", read)


def _hub_errors() -> tuple[type[Exception], ...]:
    """What ``datasets`` raises: its own are OSError, ValueError and RuntimeError; the rest is the HTTP library's."""
    from huggingface_hub import errors

    http = cast("tuple[type[Exception], ...]", errors.HfHubHTTPError.__bases__)
    return (*http, OSError, ValueError, RuntimeError)


def _hub_failed(name: str, error: Exception) -> ColdpressError:
    return NotAtHand(
        f"cannot read the data set '{name}' from the Hugging Face hub: {_first_line(error)}",
        hint="check its name and split on the hub, or use files of your own: --data_name json --data_files FILE",
    )


def _library(module: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        library, _, _ = module.partition(".")
        raise ColdpressError(f"{purpose} needs the library {library}", hint=_INSTALL) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
