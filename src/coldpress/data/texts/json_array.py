"""The objects of a JSON array, decoded one at a time, so that a long array is never whole in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from coldpress.data.texts.text_file import open_text
from coldpress.errors import ColdpressError

_CHUNK = 1 << 16
_LONGEST = 1 << 24  # characters; an object that does not end by then is taken for broken


def objects_of_array(file: Path) -> Iterator[dict[str, Any]]:
    """Each object of the array that ``file`` holds; ColdpressError with the line where it is no such array."""
    with open_text(file) as stream:
        yield from _Array(file, stream).objects()


class _Array:
    """A stretch of the file (``_text`` from ``_at`` on) that grows until it holds the next object whole."""

    def __init__(self, file: Path, stream: TextIO):
        self._file, self._stream = file, stream
        self._text, self._at, self._lines_before = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    def objects(self) -> Iterator[dict[str, Any]]:
        self._take("[")
        is_last = self._next_character() == "]"
        while not is_last:
            yield self._object()
            is_last = self._next_character() == "]"
            if not is_last:
                self._take(",")
        self._take("]")
        if self._next_character():
            raise self._broken("more follows after the array", self._at)

    def _object(self) -> dict[str, Any]:
        if self._next_character() != "{":
            raise self._broken("an object with fields should stand here", self._at)
        while True:
            try:
                row, self._at = self._decode(self._text, self._at)
                return dict(row)
            except json.JSONDecodeError as error:
                held = len(self._text) - self._at
                place = error.pos - self._at
                if held >= _LONGEST or not self._grow(max(held, _CHUNK)):
                    raise self._broken(error.msg, self._at + place) from None

    def _take(self, mark: str) -> None:
        if self._next_character() != mark:
            raise self._broken(f"'{mark}' should stand here", self._at)
        self._at += 1

    def _next_character(self) -> str:
        """The next character that is no white space, which stays; nothing at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow(_CHUNK):
                return ""

    def _grow(self, characters: int) -> bool:
        """Forget what was decoded, read on; False at the end of the file."""
        self._lines_before += self._text.count("\n", 0, self._at)
        more = self._stream.read(characters)
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _broken(self, reason: str, place: int) -> ColdpressError:
        line = self._lines_before + self._text.count("\n", 0, place) + 1
        start = max(self._text.rfind("\n", 0, place) + 1, place - 40)
        seen = self._text[start : start + 80].split("\n")[0].strip() or "the end of the file"
        return ColdpressError(f"{self._file}, line {line}: not a JSON array of objects ({reason}): {seen}")
