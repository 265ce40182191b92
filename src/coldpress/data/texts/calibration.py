"""The windows of tokens that a model is calibrated on: from the user's data, or from the text that coldpress ships."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from coldpress.data.texts.chat import read_chat_template
from coldpress.data.texts.documents import Documents
from coldpress.data.texts.rows import Row, Table, tables
from coldpress.data.texts.windows import Tokens, cut, draw
from coldpress.errors import ColdpressError

#: the shipped text; a line of three dashes ends a document of a .txt file
OWN_FOLDER = Path(__file__).parent / "calibration"
_OWN_FILES = {"prose": "prose.txt", "dialogue": "dialogue.jsonl", "code": "code.txt"}

_FILES_AT_ONCE = 32
#: tokens for each different pair of them, from which on a text repeats itself; prose has 1.2 to 4, bytes some 20
_LEAST_VARIETY = 64


@dataclass(frozen=True)
class CalibrationText:
    """What to calibrate on: data of the user's, or the shipped text when neither a name nor files are given.

    ``data_name``, ``data_files``: see ``texts.rows.tables``. ``text_template``, ``use_chat_template``: see
    ``texts.documents.Documents``. ``max_seq_len`` is the tokens of a window, ``num_samples`` the most windows.
    """

    data_name: str | None = None
    data_files: tuple[str, ...] = ()
    text_template: str | None = None
    use_chat_template: bool | None = None
    max_seq_len: int = 512
    num_samples: int = 128


@dataclass(frozen=True, eq=False)
class Windows:
    """``ids`` int64 ``[windows, max_seq_len]``; ``sources`` is a line for the report."""

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


def windows(tokenizer_folder: Path, text: CalibrationText, seed: int = 0) -> Windows:
    """Windows of tokens for calibration, the same for the same folder, text and seed.

    Texts are joined with the tokenizer's end token, if it has one, and cut into full windows, each starting with BOS if
    the tokenizer adds one; a rest shorter than a window is dropped. Rows of several files are taken in turn (of up to
    32 files at a time). Of the first ``8 x num_samples`` windows ``num_samples`` are drawn at random without
    replacement, and nothing further is read; fewer are all taken. The shipped text has as many windows of each kind
    (prose, dialogue, code) as their lengths allow.

    Raises ColdpressError for data that cannot be read or has no full window, and for a ``max_seq_len`` beyond the
    positions of the model's config.json.
    """
    folder = Path(tokenizer_folder)
    tokens = Tokens(folder)
    _check(text, folder, len(tokens.start))
    streams = _streams(text, folder)
    random = np.random.default_rng(seed)
    length = text.max_seq_len - len(tokens.start)
    drawn = [draw(cut(stream.counted(tokens), length), text.num_samples, random) for stream in streams]
    pieces = _in_turn(drawn, text.num_samples, random)
    if not pieces:
        raise _too_short(streams, text, len(tokens.start))
    ids = np.array([[*tokens.start, *piece] for piece in pieces], dtype=np.int64)
    used = [stream for stream, found in zip(streams, drawn, strict=True) if found]
    return Windows(ids, _described(used, text))


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


def _streams(text: CalibrationText, folder: Path) -> list[_Stream]:
    """One stream for the user's data; one for each kind of the shipped text."""
    chat = read_chat_template(folder)
    documents = partial(Documents, text.text_template, text.use_chat_template, chat)
    if _is_own(text):
        return [_Stream(kind, _own_tables(file), documents()) for kind, file in _OWN_FILES.items()]
    named = tables(text.data_name, text.data_files)
    return [_Stream(_names(named), named, documents())]


def _is_own(text: CalibrationText) -> bool:
    return text.data_name is None and not text.data_files


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


# What is said


def _check(text: CalibrationText, folder: Path, start_length: int) -> None:
    if text.num_samples < 1:
        raise ColdpressError(f"num_samples is {text.num_samples}; at least 1 is needed")
    if text.max_seq_len < start_length + 2:
        raise ColdpressError(f"max_seq_len is {text.max_seq_len}; at least {start_length + 2} are needed")
    if text.text_template is not None and _is_own(text):
        raise ColdpressError(
            "text_template is for data of your own; the shipped calibration text has no fields",
            hint="name the data with --data_name or --data_files",
        )
    most = positions(folder)
    if most and text.max_seq_len > most:
        raise ColdpressError(
            f"max_seq_len is {text.max_seq_len}; the model has {most} positions (max_position_embeddings)",
            hint=f"pass --max_seq_len {most} or less",
        )


def positions(folder: Path) -> int | None:
    """How many tokens a model's config.json allows; None where it does not say."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    text = config.get("text_config") or {}
    return config.get("max_position_embeddings") or text.get("max_position_embeddings")


def _too_short(streams: list[_Stream], text: CalibrationText, start_length: int) -> ColdpressError:
    found = ", ".join(f"{stream.name} {stream.tokens} tokens" for stream in streams)
    longest = max(stream.tokens for stream in streams)
    shorter = f", or shorter windows: --max_seq_len {longest + start_length}" if longest > 1 else ""
    return ColdpressError(
        f"too little calibration text for one window of {text.max_seq_len} tokens: {found}",
        hint=f"give more text{shorter}",
    )


def _described(streams: list[_Stream], text: CalibrationText) -> str:
    if _is_own(text):
        return f"coldpress's own text: {', '.join(stream.name for stream in streams)}"
    [stream] = streams
    count = stream.documents.rows
    unit = "row" if stream.tables[0].format != "text" else "line"
    return f"{stream.name}, {'' if stream.is_whole else 'first '}{count} {unit}{'' if count == 1 else 's'}"


def _names(named: list[Table]) -> str:
    names = [table.name if table.format == "hub" else Path(table.name).name for table in named]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
