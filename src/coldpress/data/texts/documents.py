"""From the rows of a table to texts: by a template, by the chat template, or the column that holds text."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from coldpress.data.texts.chat import ChatTemplate, messages_of, plain_chat
from coldpress.data.texts.rows import Row, Table
from coldpress.errors import ColdpressError, did_you_mean, naming

_CHAT_COLUMNS = ("messages", "conversations")
#: from which character to before which other
Stretch = tuple[int, int]
_BLOCK = 1 << 14  # characters of a text file that make one document


class Documents:
    """Turns rows into texts, always in the same way, and counts the rows.

    ``text_template`` is a format string over the fields of a row; a backslash followed by n is a line break.
    ``use_chat_template``: True makes every text a user message in the model's chat template, False uses the template
    for nothing, None uses it for conversations. ``chat`` is that template, None for a model without one. ``columns``:
    the fields that are the text, a blank between them; one that holds a list of messages is a conversation.
    ``for_answer``: end conversations with the mark of an answer that is to come. ``by_template``: whether the chat
    template wrote the last text.
    """

    def __init__(
        self,
        text_template: str | None = None,
        use_chat_template: bool | None = None,
        chat: ChatTemplate | None = None,
        columns: Sequence[str] = (),
        for_answer: bool = False,
    ):
        if use_chat_template and chat is None:
            raise ColdpressError(
                "use_chat_template: the model's tokenizer has no chat template",
                hint="leave it out, and write the layout as --text_template",
            )
        self.rows = 0
        self.by_template = False
        self._template = _Template(text_template) if text_template is not None else None
        self._wraps_text = bool(use_chat_template)
        self._columns, self._for_answer = list(columns), for_answer
        self._chat = None if use_chat_template is False else chat

    def of(self, table: Table) -> Iterator[str]:
        """The texts of a table, those without a word left out. The lines of a text file stay together in blocks."""
        if table.format == "text" and not self._template and not self._wraps_text:
            yield from self._blocks(table)
        else:
            yield from (text for _, text in self.with_rows(table) if text.strip())

    def with_rows(self, table: Table) -> Iterator[tuple[Row, str]]:
        """Each row of a table and its text, which may be empty."""
        text_of: Callable[[Row], str] | None = None
        for number, row in enumerate(table, start=1):
            self.rows += 1
            try:
                text_of = text_of or self._reader(row)
                text = text_of(row)
            except ColdpressError as error:
                raise ColdpressError(f"{table.name}, row {number}: {error.message}", hint=error.hint) from error
            yield row, text

    def with_answers(self, table: Table) -> Iterator[tuple[str, list[Stretch]]]:
        """Each text of a table and where in it the answers stand.

        These are what a template writes from its last field on, or the assistant's messages of a conversation with the
        marks of their end. ColdpressError for texts of which nothing says what the answer is.
        """
        for number, row in enumerate(table, start=1):
            self.rows += 1
            with naming(f"{table.name}, row {number}"):
                yield self._answered(row)

    def _answered(self, row: Row) -> tuple[str, list[Stretch]]:
        chats = [column for column in self._columns or _CHAT_COLUMNS if isinstance(row.get(column), list)]
        if self._template and not self._wraps_text:
            return self._template.fill_and_split(row)
        if self._chat is None or not chats:
            raise ColdpressError(
                "nothing says which part of the text is the answer",
                hint=(
                    "use a text_template whose last field is the answer, or conversations and the model's chat template"
                ),
            )
        self.by_template = True
        return _answers_of(self._chat, messages_of(_field(row, chats[0])))

    def _blocks(self, table: Table) -> Iterator[str]:
        lines: list[str] = []
        length = 0
        for row in table:
            self.rows += 1
            lines.append(row["text"])
            length += len(row["text"]) + 1
            if length >= _BLOCK:
                yield "\n".join(lines)
                lines, length = [], 0
        if any(line.strip() for line in lines):
            yield "\n".join(lines)

    def _reader(self, first: Row) -> Callable[[Row], str]:
        """How the rows of a table become text, as its first row tells."""
        if self._template:
            fill = self._template.fill
            return lambda row: self._wrapped(fill(row))
        chats = [column for column in self._columns or _CHAT_COLUMNS if isinstance(first.get(column), list)]
        if chats:
            return lambda row: self._conversation(_field(row, chats[0]))
        columns = self._columns or [_text_column(first)]
        return lambda row: self._wrapped(" ".join(_text(row, column) for column in columns))

    def _wrapped(self, text: str) -> str:
        return self._conversation([{"role": "user", "content": text}]) if self._wraps_text and text.strip() else text

    def _conversation(self, value: Any) -> str:
        messages = messages_of(value)
        self.by_template = self._chat is not None
        return self._chat.render(messages, self._for_answer) if self._chat else plain_chat(messages)


class _Template(string.Formatter):
    """A format string over the fields of a row. A name is always a whole field: ``{Best Answer}``, ``{meta.title}``."""

    def __init__(self, template: str):
        self._text = template.replace("\\n", "\n")
        try:
            self._wanted = [name for _, name, _, _ in self.parse(self._text) if name is not None]
        except ValueError as error:
            hint = "a brace that is meant as such is written twice: {{ }}"
            raise ColdpressError(f"text_template '{template}': {error}", hint=hint) from None
        if not self._wanted or not all(self._wanted):
            hint = 'like "### Question: {prompt}\\n### Answer: {response}"'
            raise ColdpressError(f"text_template '{template}' must name fields of the rows in braces", hint=hint)

    def fill(self, row: Row) -> str:
        missing = [name for name in self._wanted if name not in row]
        if missing:
            wanted = ", ".join(self._wanted)
            raise ColdpressError(
                f"text_template wants the fields {wanted}; {', '.join(missing)} not among those found: {_names(row)}",
                hint="change the names in --text_template",
            )
        try:
            return self.vformat(self._text, (), row)
        except (ValueError, KeyError, TypeError) as error:
            raise ColdpressError(f"text_template cannot be filled: {error}") from None

    def fill_and_split(self, row: Row) -> tuple[str, list[Stretch]]:
        """The text, and the stretch from its last field to its end."""
        text = self.fill(row)
        parts = list(self.parse(self._text))
        last = max(place for place, (_, name, _, _) in enumerate(parts) if name is not None)
        tail = _Template._assembled(parts[last : last + 1], with_literal=False) + self._assembled(parts[last + 1 :])
        return text, [(len(text) - len(self.vformat(tail, (), row)), len(text))]

    @staticmethod
    def _assembled(parts: Sequence[tuple[str, str | None, str | None, str | None]], with_literal: bool = True) -> str:
        """The template that was parsed into ``parts``."""
        written = []
        for literal, name, spec, conversion in parts:
            if with_literal:
                written.append(literal.replace("{", "{{").replace("}", "}}"))
            if name is not None:
                written.append(f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}")
        return "".join(written)

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        value = kwargs[field_name]
        return "" if value is None else value, field_name


def _answers_of(chat: ChatTemplate, messages: Sequence[dict[str, Any]]) -> tuple[str, list[Stretch]]:
    """A conversation as text, and the stretches that the assistant says."""
    whole, found = chat.render(messages), []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = chat.render(messages[:place], for_answer=True) if place else ""
        after = chat.render(messages[: place + 1])
        if not (whole.startswith(before) and whole.startswith(after)):
            raise ColdpressError(
                "the chat template writes a message otherwise when another one follows, so that answers cannot be told"
                " apart",
                hint="train on whole texts, or write the layout as a text_template",
            )
        found.append((len(before), len(after)))
    return whole, found


def _text_column(row: Row) -> str:
    if "text" in row:
        return "text"
    words = [name for name, value in row.items() if isinstance(value, str)]
    if len(words) == 1:
        return words[0]
    fields = " ".join(f"{{{name}}}" for name in words) or "{field}"
    raise ColdpressError(
        f"which field is the text? There is no 'text' and no 'messages'; found: {_names(row)}",
        hint=f'say it with --text_template, e.g. "{fields}"',
    )


def _text(row: Row, column: str) -> str:
    value = _field(row, column)
    if not isinstance(value, str | None):
        raise ColdpressError(f"field '{column}' holds no text but {type(value).__name__}: {str(value)[:80]}")
    return value or ""


def _field(row: Row, column: str) -> Any:
    if column not in row:
        raise ColdpressError(f"no field '{column}'; found: {_names(row)}", hint=did_you_mean(column, map(str, row)))
    return row[column]


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
