"""From texts to windows of tokens: joined, cut, drawn at random; never more of a text in memory than a few windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from coldpress.data.texts.chat import special_tokens
from coldpress.data.texts.heldout import load_tokenizer, start_tokens

_POOL = 8  # windows that are looked at for each one that is taken
T = TypeVar("T")


class Tokens:
    """The tokenizer of a model folder, with what it puts before a text and at its end.

    ``start`` are the ids before every text (BOS, or none), ``pad`` is the id that fills up short windows.
    """

    def __init__(self, folder: Path):
        self._tokenizer = load_tokenizer(folder)
        self.start = start_tokens(self._tokenizer, folder)
        named = special_tokens(folder)
        self._end_text = named.get("eos_token")
        self._end: int | None = self._tokenizer.token_to_id(self._end_text) if self._end_text else None
        filler = named.get("pad_token") or self._end_text
        self.pad: int = (self._tokenizer.token_to_id(filler) if filler else None) or 0

    def of(self, text: str) -> list[int]:
        """The ids of a text, without those of ``start``, which a template may have written already."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids[len(self.start) :] if self.start and ids[: len(self.start)] == self.start else ids

    def start_of(self, text: str, by_template: bool) -> list[int]:
        """The ids before those of a text: ``start``, but for one by a chat template only where that wrote them, as
        transformers has it."""
        wrote_it = self._tokenizer.encode(text, add_special_tokens=False).ids[: len(self.start)] == self.start
        return self.start if wrote_it or not by_template else []

    def places(self, text: str) -> list[int]:
        """The place in ``text`` at which each id of `of` begins."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return [start for start, _ in found.offsets][len(found.ids) - len(self.of(text)) :]

    def ended(self, text: str) -> list[int]:
        """The ids of a text with the end token behind them, if there is one and the text does not end in it already."""
        return [*self.of(text), *self._after(text)]

    def joined(self, texts: Iterable[str], joiner: str | None = None) -> Iterator[list[int]]:
        """The ids of each text, behind those of ``joiner``.

        Without a joiner that is the end token, if there is one and the text before does not end in it already.
        """
        between: list[int] = []
        for text in texts:
            yield [*between, *self.of(text)]
            between = self._after(text) if joiner is None else self.of(joiner)

    def _after(self, text: str) -> list[int]:
        has_end = self._end is None or text.rstrip().endswith(self._end_text or "")
        return [] if has_end or self._end is None else [self._end]


def cut(
    chunks: Iterable[list[int]], length: int, stride: int | None = None, rest: bool = False
) -> Iterator[np.ndarray]:
    """Pieces, int64 ``[length]``, of the stream that the chunks make, one every ``stride`` ids (``length`` if None).

    ``rest``: the last piece may be shorter; else what does not fill one is dropped.
    """
    step = stride or length
    held: list[int] = []
    is_new = False  # whether there are ids that no piece has had
    for ids in chunks:
        held += ids
        is_new = is_new or bool(ids)
        starts = range(0, len(held) - length + 1, step)
        for start in starts:
            yield np.array(held[start : start + length], dtype=np.int64)
        if starts:
            del held[: starts[-1] + step]
            is_new = len(held) > length - step
    if rest and held and is_new:
        yield np.array(held, dtype=np.int64)


def draw(pieces: Iterator[T], count: int, random: np.random.Generator) -> list[tuple[int, T]]:
    """``count`` of the first ``8 x count`` pieces, each as likely, with their places; no more than that are held.

    Reservoir sampling: Vitter, "Random sampling with a reservoir" (1985), algorithm R.
    """
    drawn: list[tuple[int, T]] = []
    for place, piece in enumerate(islice(pieces, _POOL * count)):
        if place < count:
            drawn.append((place, piece))
        elif (slot := int(random.integers(place + 1))) < count:
            drawn[slot] = (place, piece)
    return drawn
