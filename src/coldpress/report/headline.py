"""What a reader sees first: what was made, and size, quality and speed in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from coldpress.report import (
    Fact,
    Report,
    facts,
    number,
    plain,
    precision,
    quantity,
    section,
    share,
    task,
)

#: a word of English has about four thirds of a token in the vocabularies of chat models
_WORDS_IN_TOKEN = 0.75
#: what is told of quality: the first that was measured, and what it is in words
_QUALITY = {
    "top1_agreement": "of next tokens are what its source would say",
    "label_agreement": "of the labels are its source's",
    "cosine": "likeness of its vectors to the source's; 1 is the same",
}
_MARKS = {"better": "better than usual", "usual": "as usual", "worse": "worse than usual"}


def made(report: Report) -> str:
    """What was made, as people say it: "int4, calibrated: an ONNX model for the CPU"."""
    calibration, tuned = section(report, "calibration"), section(report, "tuning")
    how = [
        precision(report) or "",
        "calibrated" if calibration.get("layers") else "",
        f"fine-tuned by {plain(tuned.get('method', ''))}" if tuned else "",
        "the best of a search" if section(report, "search") else "",
    ]
    form = {"hf": "a Hugging Face folder", "adapter": "an adapter beside its base"}.get(
        str(report.get("format")), "an ONNX model"
    )
    device = plain(section(report, "target").get("device") or "")
    where = f" for the {device.upper()}" if device and form == "an ONNX model" else ""
    said = ", ".join(filter(None, how))
    return f"{said}: {form}{where}" if said else f"{form[:1].upper()}{form[1:]}{where}"


@dataclass(frozen=True)
class Figure:
    """One number in large letters, what it means, and, in ``mark``, how it lies beside what is usual."""

    name: str
    value: str
    meaning: str
    mark: str = ""
    usual: str = ""


def headline(report: Report) -> str:
    """The figures as HTML; those that were not measured say so."""
    return f'<dl class="figures">{"".join(map(_drawn, figures(report)))}</dl>'


def figures(report: Report) -> Iterator[Figure]:
    """Size, quality, and speed against the source."""
    known = {fact.key: fact for fact in facts(report)}
    yield _size(report, known["model_bytes"])
    yield _quality(report, known)
    if "perplexity" in known:
        fact = known["perplexity"]
        beside = f"the source has {fact.source}" if fact.change else ""
        yield Figure("Perplexity", fact.model, beside, fact.change)
    yield _speed(report, known)


def _size(report: Report, fact: Fact) -> Figure:
    source, model = number(section(report, "source"), "bytes"), number(section(report, "size"), "model_bytes")
    if source is None or model is None:
        return Figure("Size", fact.model, fact.meaning)
    return Figure("Size", fact.model, f"{share(model / source)} of the source's {fact.source}", fact.change)


def _quality(report: Report, known: dict[str, Fact]) -> Figure:
    found = next((known[key] for key in _QUALITY if key in known and known[key].measured), None)
    if found is None:
        return Figure("Quality", "not compared", "nobody has compared its answers with the source's")
    words = _QUALITY[found.key]
    kind, made_in = task(report), precision(report) or ""
    one = next((one for one in kind.criteria if one.name == found.key), None) if kind else None
    value = number(section(report, "quality"), found.key)
    if kind is None or one is None or value is None or not (mark := one.beside_usual(value, made_in)):
        return Figure(found.name, found.model, words, found.limit and f"allowed: {found.limit}")
    low, high = ((share if one.is_share else quantity)(bound) for bound in one.usual[made_in])
    usual = f"usual for {made_in}: {low} to {high}, in {kind.usual_of}"
    return Figure(found.name, found.model, words, _MARKS[mark], usual)


def _speed(report: Report, known: dict[str, Fact]) -> Figure:
    speed = section(report, "speed")
    if (rate := number(speed, "decode_tokens_per_second")) is not None:
        first = known.get("first_token_ms")
        wait = f", the first after {first.model}" if first else ""
        words = f"about {quantity(rate * _WORDS_IN_TOKEN)} words a second{wait}"
        return Figure("Speed", f"{quantity(rate)} tokens/s", words, usual="the source was not timed")
    if "latency_ms" in known:
        return Figure("Latency", known["latency_ms"].model, "for one run", usual="the source was not timed")
    return Figure("Speed", "not measured", "")


def _drawn(figure: Figure) -> str:
    mark = f'<span class="mark">{escape(figure.mark)}</span>' if figure.mark else ""
    usual = f"<small>{escape(figure.usual)}</small>" if figure.usual else ""
    return (
        f'<div class="figure"><dt>{escape(figure.name)}</dt><dd><strong>{escape(figure.value)}</strong>'
        f"{escape(figure.meaning)}{mark}{usual}</dd></div>"
    )
