"""What is said in a chat, as tokens for a model in onnxruntime-genai.

This file knows nothing of coldpress: a package that serves a model carries a copy of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def prompt_ids(tokenizer: Any, folder: Path, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids of a chat that awaits an answer, by onnxruntime-genai's ``tokenizer`` of the model in ``folder``.

    Without a chat template they are those of the bare words, begun as the model begins every text. Raises ValueError
    with the template's own words where it refuses the chat.
    """
    if any("\0" in message["content"] for message in messages):
        raise ValueError("it holds a NUL character, at which a text ends for onnxruntime-genai")
    has_template = has_chat_template(folder)
    text = chat_text(tokenizer, messages) if has_template else "\n".join(message["content"] for message in messages)
    tokenizer.update_options(add_special_tokens="false" if has_template else "true")  # a template writes BOS itself
    return [int(token) for token in tokenizer.encode(text)]


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """The chat by the template, with the mark of an answer; never the bare words.

    A template that refuses a system message gets its text as the beginning of the first user message.
    """
    try:
        return _rendered(tokenizer, messages)
    except RuntimeError as error:
        if [message["role"] for message in messages[:2]] != ["system", "user"]:
            raise ValueError(f"the chat template refuses the chat: {_first_line(error)}") from error
    system, user, *others = messages
    try:
        return _rendered(tokenizer, [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others])
    except RuntimeError as error:
        raise ValueError(f"the chat template refuses the chat: {_first_line(error)}") from error


def has_chat_template(folder: Path) -> bool:
    """Whether a folder holds a chat template, in one of the places where onnxruntime-genai looks."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(json.dumps(list(map(dict, messages))), add_generation_prompt=True)
    return text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
