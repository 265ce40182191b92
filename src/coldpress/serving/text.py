"""The text of an answer while its tokens come, up to the words at which it is to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Text:
    """``feed`` it tokens; what it gives back is certain, as no stop begins in it. ``found``: the stop that ended it.

    ``decoder`` is a stream of onnxruntime-genai's tokenizer.
    """

    def __init__(self, decoder: Any, stops: Sequence[str] = ()):
        self._decoder, self._stops = decoder, tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, token: int) -> str:
        """What a token adds to the text, as far as it cannot be the beginning of a stop."""
        self._held += self._decoder.decode(token)
        ends = {place: stop for stop in reversed(self._stops) if (place := self._held.find(stop)) >= 0}
        if ends:
            first = min(ends)
            self.found = ends[first]
            return self._given(first)
        return self._given(len(self._held) - self._begun())

    def rest(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.found else self._given(len(self._held))

    def _given(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        return given

    def _begun(self) -> int:
        """How many characters at the end are the beginning of a stop, at most."""
        return max((self._overlap(stop) for stop in self._stops), default=0)

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
