"""Whether the text that a model is trained on is laid out as its chat template lays out a conversation."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.tokenizers.chat_template import ChatTemplate, read_chat_template

#: stand for a question and its answer; no template writes them by itself
_QUESTION, _ANSWER = "\ue000", "\ue001"


def remark_on_template(folder: Path, data: dict[str, Any]) -> str | None:
    """What is to be said of rows laid out by a ``text_template``, as ``data``, parameters of a text corpus, have it.

    None where they have none, where the model in ``folder`` has no chat template, and where the two agree in what
    stands between a question and its answer. Blanks at the ends of that do not count.
    """
    template, chat = data.get("text_template"), read_chat_template(folder)
    if template is None or data.get("chat_template") is not None or chat is None:
        return None
    own = _own_layout(chat)
    if own is None or own.partition(_QUESTION)[2].partition(_ANSWER)[0].strip() in template.replace("\\n", "\n"):
        return None
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    question, answer = fields[-2:] if len(fields) > 1 else ("prompt", "response")
    escaped = own.replace("{", "{{").replace("}", "}}").replace("\n", "\\n")
    written = escaped.replace(_QUESTION, f"{{{question}}}").replace(_ANSWER, f"{{{answer}}}")
    return (
        "text_template is not the model's own chat template, so chats will ask it otherwise than it was trained; its"
        f" own is --text_template '{written}'"
    )


def _own_layout(chat: ChatTemplate) -> str | None:
    """A question and its answer as the template writes them; None for one that does not write both."""
    try:
        text = chat.render([{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}])
    except ColdpressError:
        return None
    return text.rstrip("\n") if _ANSWER in text.partition(_QUESTION)[2] else None
