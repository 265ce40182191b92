"""What is said in a chat, as tokens for a model in onnxruntime-genai.

This file knows nothing of coldpress: a package that serves a model carries a copy of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Message = Mapping[str, Any]


def prompt_ids(tokenizer: Any, folder: Path, messages: Sequence[Message], tools: str | None = None) -> list[int]:
    """The ids of a chat that awaits an answer, by onnxruntime-genai's ``tokenizer`` of the model in ``folder``.

    ``tools``: JSON of the functions that an answer may call. Without a chat template the ids are those of the bare
    words, begun as the model begins every text. Raises ValueError with the template's own words where it refuses the
    chat.
    """
    if has_chat_template(folder):
        return text_ids(tokenizer, chat_text(tokenizer, messages, tools), is_begun=True)
    return text_ids(tokenizer, "\n".join(message["content"] for message in messages))


def text_ids(tokenizer: Any, text: str, is_begun: bool = False) -> list[int]:
    """The ids of a text; ``is_begun``: it has what the model begins every text with, as a template writes it.

    Raises ValueError for a text that onnxruntime-genai would cut.
    """
    if "\0" in text:
        raise ValueError("it holds a NUL character, at which a text ends for onnxruntime-genai")
    tokenizer.update_options(add_special_tokens="false" if is_begun else "true")
    return [int(token) for token in tokenizer.encode(text)]


def chat_text(tokenizer: Any, messages: Sequence[Message], tools: str | None = None) -> str:
    """The chat by the template, with the mark of an answer; never the bare words.

    A template that refuses a system message gets its text as the beginning of the first user message.
    """
    if any("\0" in str(message.get("content")) for message in messages):
        raise ValueError("it holds a NUL character, at which a text ends for onnxruntime-genai")
    try:
        return _rendered(tokenizer, messages, tools)
    except RuntimeError as error:
        if [message["role"] for message in messages[:2]] != ["system", "user"]:
            raise ValueError(f"the chat template refuses the chat: {_first_line(error)}") from error
    system, user, *others = messages
    try:
        one = {**user, "content": f"{system['content']}\n\n{user['content']}"}
        return _rendered(tokenizer, [one, *others], tools)
    except RuntimeError as error:
        raise ValueError(f"the chat template refuses the chat: {_first_line(error)}") from error


def has_chat_template(folder: Path) -> bool:
    """Whether a folder holds a chat template, in one of the places where onnxruntime-genai looks."""
    return bool(chat_template(folder))


def chat_template(folder: Path) -> str:
    """The chat template of a folder that onnxruntime-genai takes; empty where there is none."""
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if found := settings.get("chat_template"):
        return found if isinstance(found, str) else json.dumps(found)
    files = (folder / name for name in ("chat_template.jinja", "chat_template.json"))
    return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")


def _rendered(tokenizer: Any, messages: Sequence[Message], tools: str | None) -> str:
    given = {} if tools is None else {"tools": tools}
    text: str = tokenizer.apply_chat_template(
        json.dumps(list(map(dict, messages))), add_generation_prompt=True, **given
    )
    return text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
