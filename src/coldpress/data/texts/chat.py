"""Conversations from the rows of a data set, and the chat template that makes them text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.tokenizers.chat_template import ChatTemplate, Message, read_chat_template, special_tokens

__all__ = ["ChatTemplate", "Message", "messages_of", "plain_chat", "read_chat_template", "special_tokens"]

# names of the ShareGPT layout, {"from": "human", "value": ...}
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def plain_chat(messages: Sequence[Message]) -> str:
    """The conversation without a template: ``User: ...``, ``Assistant: ...``, each on a line of its own."""
    return "\n".join(f"{str(message['role']).capitalize()}: {message['content']}" for message in messages)


def messages_of(value: Any) -> list[Message]:
    """A row's conversation as messages with ``role`` and ``content``; ColdpressError when it is none.

    Read are ``{"role": ..., "content": ...}``, whose content may be a list of parts with a ``text``, and
    ``{"from": ..., "value": ...}``.
    """
    if not isinstance(value, list) or not value:
        raise ColdpressError("no list of messages", hint='like [{"role": "user", "content": "..."}, ...]')
    return [_message(entry) for entry in value]


def _message(entry: Any) -> Message:
    if isinstance(entry, dict) and "role" in entry and "content" in entry:
        return {**entry, "content": _plain_content(entry["content"])}
    if isinstance(entry, dict) and "from" in entry and "value" in entry:
        return {"role": _ROLES.get(entry["from"], entry["from"]), "content": _plain_content(entry["value"])}
    found = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
    raise ColdpressError(f"a message without role and content (found: {found})")


def _plain_content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)
