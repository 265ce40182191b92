"""What a model answers, beside what its source answers, with the place where they part."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from coldpress.report import Report, entries, number, plain, share


def answers(report: Report) -> str:
    """A figure for each prompt, as HTML; empty without answers."""
    given = "".join(map(_answer, entries(report, "answers")))
    return f'<div class="answers">{given}</div>' if given else ""


def _answer(answer: Mapping[str, Any]) -> str:
    agreement, said = number(answer, "agreement"), plain(answer.get("answer", ""))
    source = plain(answer.get("source") or "")
    against = "not compared with the source" if agreement is None else f"{share(agreement)} the same as the source"
    cut = "" if answer.get("source_is_whole") or not source else " …"
    same = _alike(said, source) if source else len(said)
    own = f"<blockquote><h3>this model</h3>{_parting(said, same)}</blockquote>"
    beside = f"<blockquote><h3>its source</h3>{_parting(source + cut, same)}</blockquote>" if source else ""
    prompt = f'<p class="prompt">{escape(plain(answer.get("prompt", "")))}</p>'
    return f'<figure>{prompt}<div class="beside">{own}{beside}</div><figcaption>{against}</figcaption></figure>'


def _alike(one: str, other: str) -> int:
    """How many characters are the same from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _parting(said: str, same: int) -> str:
    """Text with what is not the same in both marked."""
    other = f"<mark>{escape(said[same:])}</mark>" if said[same:] else ""
    return f"{escape(said[:same])}{other}"
