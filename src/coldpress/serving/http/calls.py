"""Calls of functions that a model makes: what it is told of them, how it is held to one, and how its text is read.

A call is a JSON object with ``name`` and ``arguments`` (Llama 3: ``parameters``), or a list of those, bare or between
tags; so write the models whose chat templates take tools.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from coldpress.serving.engine import Grammar, json_grammar
from coldpress.serving.http.requests import Tool

_TAGS = re.compile(r"<\|?/?(?:tool_calls?|python_tag|eom_id)\|?>|\[TOOL_CALLS\]")
_BEGINNINGS = ("{", "[{", "[ {", "<tool_call", "<|tool_call", "<|python_tag|>", "[TOOL_CALLS]")


def told(tools: Sequence[Tool]) -> str:
    """What a chat template gets, as JSON."""
    return json.dumps([{"type": "function", "function": _plain(tool)} for tool in tools], ensure_ascii=False)


def grammar_of_calls(tools: Sequence[Tool]) -> Grammar:
    """One call of one of the tools, with arguments that fit its parameters."""
    schemas = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": tool.function.parameters},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return json_grammar(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})


def may_be_a_call(text: str) -> bool:
    """Whether what was said so far could become a call."""
    begun = text.lstrip()
    return any(begun.startswith(one) or one.startswith(begun) for one in _BEGINNINGS)


def calls_in(text: str, names: Collection[str]) -> list[dict[str, Any]]:
    """The calls that a text is; none where it is something else, or where a function is called that there is not."""
    found = _objects(_TAGS.sub(" ", text).strip())
    if not found or not all(isinstance(one, dict) and one.get("name") in names for one in found):
        return []
    return [_call(one) for one in found]


def _plain(tool: Tool) -> dict[str, Any]:
    return tool.function.model_dump(exclude={"strict"})


def _objects(text: str) -> list[Any]:
    """JSON values one after the other, lists taken apart; none where anything else stands between."""
    found, decoder = [], json.JSONDecoder()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return []
        found += value if isinstance(value, list) else [value]
        text = text[end:].lstrip(" \n\r\t;,")
    return found


def _call(found: dict[str, Any]) -> dict[str, Any]:
    arguments = found.get("arguments", found.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": found["name"], "arguments": text},
    }
