"""Conversations: from the rows of a data set, and as text by the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError

Message = dict[str, Any]

# names of the ShareGPT layout, {"from": "human", "value": ...}
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}

# Some templates write today's date. Under this macro they always write the first of January 2025, so that the same data
# gives the same tokens on any day.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format | replace('%Y', '2025') | replace('%y', '25') | replace('%m', '01')"
    " | replace('%-m', '1') | replace('%d', '01') | replace('%-d', '1') | replace('%B', 'January')"
    " | replace('%b', 'Jan') | replace('%A', 'Wednesday') | replace('%a', 'Wed') | replace('%H', '00')"
    " | replace('%M', '00') | replace('%S', '00') }}{% endmacro %}\n"
)


@dataclass(frozen=True)
class ChatTemplate:
    """The Jinja template of a model folder, and the special tokens that it may write (``bos_token``, ...)."""

    source: str
    special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message], for_answer: bool = False) -> str:
        """The conversation as the model sees it; ``for_answer`` ends it with the mark of an answer that is to come.

        A template that refuses a system message gets its text as the beginning of the first user message. Raises
        ColdpressError with the template's own words when it refuses that too.
        """
        from jinja2 import TemplateError

        refused = (TemplateError, TypeError, ValueError, KeyError)
        try:
            return self._render(messages, for_answer)
        except refused as error:
            without_system = _system_within_user(messages)
            if without_system is None:
                raise _refusal(error) from error
        try:
            return self._render(without_system, for_answer)
        except refused as error:
            raise _refusal(error) from error

    def _render(self, messages: Sequence[Message], for_answer: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        source = _FIXED_DATE + self.source if "strftime_now" in self.source else self.source
        render: Any = render_jinja_template  # annotated as str; it gives the texts and the places of the answers
        options = {"chat_template": source, "add_generation_prompt": for_answer}
        texts, _ = render(conversations=[list(messages)], **options, **self.special_tokens)
        return str(texts[0])


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a model folder, from one of the places where transformers puts it; None without one."""
    config = _read_json(folder / "tokenizer_config.json")
    jinja = folder / "chat_template.jinja"
    source = (
        jinja.read_text(encoding="utf-8")
        if jinja.is_file()
        else config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    )
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    return ChatTemplate(source, special_tokens(folder)) if source else None


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a tokenizer names, as text: ``{"bos_token": "<s>", "eos_token": "</s>", ...}``."""
    named = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


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


def _system_within_user(messages: Sequence[Message]) -> list[Message] | None:
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    system, user, *others = messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others]


def _refusal(error: Exception) -> ColdpressError:
    return ColdpressError(
        f"the model's chat template refuses the conversation: {error}",
        hint="change the conversation, or turn use_chat_template off",
    )


def _read_json(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return value if isinstance(value, dict) else {}
