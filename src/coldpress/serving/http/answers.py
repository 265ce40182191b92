"""Answers on their way: from the events of a scheduler to texts, counts and reasons, as requests ask for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.serving.catalog import ChatModel
from coldpress.serving.http.calls import calls_in, may_be_a_call
from coldpress.serving.http.errors import ApiError
from coldpress.serving.scheduler import Answer, Busy, Closing, Ended, Event, Question
from coldpress.serving.text import Text


@dataclass
class Choice:
    """One answer: its text so far, the calls it turned out to be, its tokens and why it ended."""

    index: int
    text: Text
    tools: Collection[str] = ()
    said: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    reason: str | None = None
    _shown: int = 0

    def feed(self, token: int) -> str:
        """What of the text can be shown after one more token."""
        self.tokens += 1
        self.said += self.text.feed(token)
        return self._new()

    def end(self, reason: str) -> str:
        """What is left of the text; ``reason``: stop or length."""
        self.said += self.text.rest()
        self.reason = reason
        if self.tools and (calls := calls_in(self.said, self.tools)):
            self.calls, self.said, self.reason = calls, "", "tool_calls"
        return self._new(is_whole=True)

    def _new(self, is_whole: bool = False) -> str:
        if self.tools and not is_whole and may_be_a_call(self.said):
            return ""
        new, self._shown = self.said[self._shown :], len(self.said)
        return new


@dataclass(frozen=True)
class Piece:
    """What is new of a choice."""

    choice: Choice
    text: str


class Exchange:
    """Questions that belong to one request, and their answers as they come.

    ``async for`` gives pieces until every choice has ended. ``close`` gives up what is still in the making. Raises
    ApiError where the line is full, where the server is ending, and for what goes wrong in the making.
    """

    def __init__(self, model: ChatModel, questions: Sequence[Question], choices: Sequence[Choice]):
        self.choices = list(choices)
        self.prompt_tokens = sum(len(ids) for ids in {id(one.prompt_ids): one.prompt_ids for one in questions}.values())
        self.first_token_s: float | None = None
        self._began = time.perf_counter()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._answers = _submitted(
            model, questions, [_teller(loop, self._events, place) for place in range(len(questions))]
        )

    @property
    def generated_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    def close(self) -> None:
        for answer in self._answers:
            answer.close()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            while any(choice.reason is None for choice in self.choices):
                place, event = await self._events.get()
                choice = self.choices[place]
                if choice.reason is None:
                    yield Piece(choice, self._taken(choice, event))
        finally:
            self.close()

    async def finished(self) -> Exchange:
        """Itself, with all its answers whole."""
        async for _ in self:
            pass
        return self

    def _taken(self, choice: Choice, event: Event) -> str:
        if isinstance(event, ColdpressError):
            raise ApiError(503 if event.exit_code == 1 else 400, str(event), code="no_answer")
        if isinstance(event, Ended):
            return choice.end(event.reason)
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self._began
        new = choice.feed(event)
        if choice.text.found is None:
            return new
        self._answers[self.choices.index(choice)].close()
        return new + choice.end("stop")


def _submitted(
    model: ChatModel, questions: Sequence[Question], tells: Sequence[Callable[[Event], None]]
) -> list[Answer]:
    try:
        return model.scheduler.submit(questions, tells)
    except Busy:
        wait = {"Retry-After": "1"}
        raise ApiError(429, "too many requests are waiting", code="queue_full", headers=wait) from None
    except Closing:
        raise ApiError(503, "the server is shutting down", code="closing") from None


def _teller(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[int, Event]], place: int
) -> Callable[[Event], None]:
    """Tells the loop of the request what happened in the thread of the scheduler."""

    def tell(event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, (place, event))

    return tell
