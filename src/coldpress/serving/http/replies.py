"""What clients get to read: whole answers and streams of their pieces, of chats and of texts that were continued."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from coldpress.serving.http.answers import Choice, Exchange, Piece
from coldpress.serving.http.errors import ApiError, body_of

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """How answers to one request are written. ``model``: as the request called it."""

    model: str
    is_chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, exchange: Exchange) -> Json:
        """The answer when all of it is there."""
        write = self._chat_choice if self.is_chat else self._text_choice
        kind = "chat.completion" if self.is_chat else "text_completion"
        choices = [write(choice) for choice in exchange.choices]
        return {**self._head(kind), "choices": choices, "usage": usage(exchange)}

    async def stream(self, exchange: Exchange, pieces: AsyncIterator[Piece], with_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events; what goes wrong on the way is one, too."""
        begun = set[int]()
        try:
            async for piece in pieces:
                for choice in self._chunks(piece, begun):
                    yield self._event([choice])
        except ApiError as error:
            yield _line(body_of(error))
            return
        if with_usage:
            yield self._event([], usage=usage(exchange))
        yield b"data: [DONE]\n\n"

    def _chunks(self, piece: Piece, begun: set[int]) -> list[Json]:
        choice = piece.choice
        head: Json = {"index": choice.index, "logprobs": None}
        if not self.is_chat:
            has_news = piece.text or choice.reason
            return [{**head, "text": piece.text, "finish_reason": choice.reason}] if has_news else []
        deltas = list[Json]()
        if choice.index not in begun:
            begun.add(choice.index)
            deltas.append({"role": "assistant", "content": ""})
        deltas += [{"content": piece.text}] if piece.text else []
        deltas += [{"tool_calls": [{"index": place, **call}]} for place, call in enumerate(choice.calls)]
        chunks: list[Json] = [{**head, "delta": delta, "finish_reason": None} for delta in deltas]
        return [*chunks, {**head, "delta": {}, "finish_reason": choice.reason}] if choice.reason else chunks

    def _event(self, choices: list[Json], **others: Json) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return _line({**self._head(kind), "choices": choices, **others})

    def _head(self, kind: str) -> Json:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _chat_choice(self, choice: Choice) -> Json:
        message: Json = {"role": "assistant", "content": choice.said, "refusal": None}
        if choice.calls:
            message |= {"content": None, "tool_calls": choice.calls}
        return {"index": choice.index, "message": message, "logprobs": None, "finish_reason": choice.reason}

    def _text_choice(self, choice: Choice) -> Json:
        return {"index": choice.index, "text": choice.said, "logprobs": None, "finish_reason": choice.reason}


def usage(exchange: Exchange) -> Json:
    prompt, generated = exchange.prompt_tokens, exchange.generated_tokens
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _line(content: Json) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
