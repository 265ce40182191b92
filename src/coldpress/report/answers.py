"""What a model answers, beside what its source answers, with the words in which they differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from coldpress.report import Report, entries, number, plain, share

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


def answers(report: Report) -> str:
    """A figure for each prompt, as HTML; empty without answers."""
    given = "".join(map(_answer, entries(report, "answers")))
    return f'<div class="answers">{given}</div>' if given else ""


def _answer(answer: Mapping[str, Any]) -> str:
    agreement, said = number(answer, "agreement"), plain(answer.get("answer", ""))
    source = plain(answer.get("source") or "")
    against = (
        "not compared with the source"
        if agreement is None
        else f"{share(agreement)} of its tokens are what the source would say in their place"
    )
    own, other = _compared(said, source) if source else (escape(said), "")
    cut = "" if answer.get("source_is_whole") else " …"
    beside = f"<blockquote><h3>its source</h3>{other}{cut}</blockquote>" if source else ""
    prompt = f'<p class="prompt">{escape(plain(answer.get("prompt", "")))}</p>'
    return (
        f'<figure>{prompt}<div class="beside"><blockquote><h3>this model</h3>{own}</blockquote>{beside}</div>'
        f"<figcaption>{against}</figcaption></figure>"
    )


def _compared(said: str, source: str) -> tuple[str, str]:
    """Both texts, with what only one of them says marked."""
    words = _WORDS.findall(said), _WORDS.findall(source)
    blocks = difflib.SequenceMatcher(None, *words, autojunk=False).get_matching_blocks()
    return _marked(words[0], [(one.a, one.size) for one in blocks]), _marked(
        words[1], [(one.b, one.size) for one in blocks]
    )


def _marked(words: Sequence[str], same: Sequence[tuple[int, int]]) -> str:
    """The words, marked outside the spans (start, length) that both have."""
    parts, place = [], 0
    for start, length in same:
        if other := "".join(words[place:start]):
            parts.append(f"<mark>{escape(other)}</mark>")
        place = start + length
        parts.append(escape("".join(words[start:place])))
    return "".join(parts)
