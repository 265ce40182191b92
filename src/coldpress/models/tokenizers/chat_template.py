"""The chat template of a model folder: the one that transformers takes, rendered as transformers renders it.

A folder may hold templates in several places, and the runtimes do not look in the same order. So the one in force is
found by the rules of transformers and written to a result where every runtime finds it, in a form that they all read
alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError

Message = dict[str, Any]

FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"

# Some templates write today's date. Under this macro they always write the first of January 2025, so that the same data
# gives the same tokens on any day.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format | replace('%Y', '2025') | replace('%y', '25') | replace('%m', '01')"
    " | replace('%-m', '1') | replace('%d', '01') | replace('%-d', '1') | replace('%B', 'January')"
    " | replace('%b', 'Jan') | replace('%A', 'Wednesday') | replace('%a', 'Wed') | replace('%H', '00')"
    " | replace('%M', '00') | replace('%S', '00') }}{% endmacro %}\n"
)
#: the special tokens that every engine gives a template
_GIVEN_EVERYWHERE = ("bos_token", "eos_token")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the special tokens that it may write (``bos_token``, ...); ``place`` is where it stands."""

    source: str
    special_tokens: Mapping[str, str]
    place: str = "the model's chat template"

    def render(self, messages: Sequence[Message], for_answer: bool = False) -> str:
        """The conversation as the model sees it; ``for_answer`` ends it with the mark of an answer that is to come.

        A template that refuses a system message gets its text as the beginning of the first user message. Raises
        ColdpressError with the template's own words when it refuses that too.
        """
        try:
            return self._render(messages, for_answer, _FIXED_DATE)
        except refusals() as error:
            without_system = system_within_user(messages)
            if without_system is None:
                raise self._refusal(error) from error
        try:
            return self._render(without_system, for_answer, _FIXED_DATE)
        except refusals() as error:
            raise self._refusal(error) from error

    def check(self) -> None:
        """Raise ColdpressError when the template is not one that transformers can render for a single question."""
        from jinja2 import TemplateSyntaxError

        hint = "mend it, or take it out of the folder: without one, a prompt is the bare text"
        try:
            self._render([{"role": "user", "content": "Hello"}], True)
        except TemplateSyntaxError as error:
            where = f"{self.place}, line {error.lineno}"
            raise ColdpressError(
                f"{where}: the chat template is not valid Jinja: {error.message}", hint=hint
            ) from error
        except refusals() as error:
            reason = f"{type(error).__name__}: {error}"
            raise ColdpressError(
                f"{self.place}: the chat template refuses a single question: {reason}", hint=hint
            ) from error

    def spelled_out(self) -> str:
        """The template for engines that know less than jinja2 and nothing of how transformers uses it; it renders alike
        in both.

        What transformers defines besides the messages is defined where it is missing; see ``template_dialect`` for the
        rest.
        """
        from coldpress.models.tokenizers.template_dialect import Unwritten, rewritten

        try:
            return self._definitions() + (rewritten(self.source) or self.source)
        except Unwritten:
            return self._definitions() + self.source

    def _definitions(self) -> str:
        """Tags that define what transformers gives a template besides the messages, of which this one makes use."""
        from coldpress.models.tokenizers.template_dialect import literal

        tokens = {name: text for name, text in self.special_tokens.items() if name not in _GIVEN_EVERYWHERE}
        given = {"tools": None, "documents": None, **tokens}
        return "".join(
            f"{{% if {name} is not defined %}}{{% set {name} = {literal(given[name])} %}}{{% endif %}}"
            for name in sorted(given)
            if re.search(rf"\b{name}\b", self.source)
        )

    def _render(self, messages: Sequence[Message], for_answer: bool, before: str = "") -> str:
        from coldpress.models.tokenizers.template_renderer import renderer

        source = before + self.source if "strftime_now" in self.source else self.source
        options = {"chat_template": source, "add_generation_prompt": for_answer}
        texts, _ = renderer()(conversations=[list(messages)], **options, **self.special_tokens)
        return str(texts[0])

    def _refusal(self, error: Exception) -> ColdpressError:
        return ColdpressError(
            f"the model's chat template refuses the conversation: {error}",
            hint="change the conversation, or turn use_chat_template off",
        )


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template that transformers takes from a model folder; None without one.

    Files with templates go before tokenizer_config.json, and of several it is the one named ``default``. A processor's
    chat_template.json, which tokenizers do not read, is the last resort.
    """
    files = {file.stem: file.read_text(encoding="utf-8") for file in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / FILE).is_file():
        files = {"default": (folder / FILE).read_text(encoding="utf-8"), **files}
    place, found = (FILE if files.keys() <= {"default"} else FOLDER), files or None
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not found:
            place, found = name, read_json(folder / name).get("chat_template")
    source = _default(found, folder / place)
    return ChatTemplate(source, special_tokens(folder), str(folder / place)) if source else None


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a tokenizer names, as text: ``{"bos_token": "<s>", "eos_token": "</s>", ...}``."""
    named = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def system_within_user(messages: Sequence[Message]) -> list[Message] | None:
    """The messages with the system's text as the beginning of the first user message; None where there are no such
    two."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    system, user, *others = messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others]


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file. ColdpressError names the place of a mistake."""
    try:
        value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except json.JSONDecodeError as error:
        raise ColdpressError(
            f"{file}, line {error.lineno}: not valid JSON: {error.msg}", hint="is the copy complete?"
        ) from error
    except UnicodeDecodeError as error:
        raise ColdpressError(f"{file} is not a text file in UTF-8") from error
    if not isinstance(value, dict):
        raise ColdpressError(f"{file} holds no JSON object")
    return value


def _default(found: Any, place: Path) -> str | None:
    """The template itself, or the one named ``default`` among several."""
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        if not isinstance(found.get("default"), str):
            raise ColdpressError(
                f"{place} has the chat templates {', '.join(map(str, found))}, and none of them is named 'default'",
                hint="transformers takes the one of that name: rename the one to use",
            )
        found = found["default"]
    if found is not None and not isinstance(found, str):
        raise ColdpressError(f"{place}: chat_template is neither a text nor a list of named ones")
    return found


def refusals() -> tuple[type[Exception], ...]:
    """What the code of a template can raise."""
    from jinja2 import TemplateError

    return (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
