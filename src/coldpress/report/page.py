"""The report as one HTML file: nothing loaded from elsewhere, readable on a phone and on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from coldpress.report import (
    NOT_MEASURED,
    Fact,
    Report,
    entries,
    facts,
    measured_on,
    model_name,
    number,
    plain,
    quantity,
    reasons,
    seconds,
    section,
    size,
    task,
    verdict,
)
from coldpress.report.answers import answers
from coldpress.report.calibration import calibration, texts
from coldpress.report.charts import bars, scripts
from coldpress.report.headline import headline, made
from coldpress.report.heat_map import heat_map
from coldpress.report.quality import quality
from coldpress.report.search import search
from coldpress.report.tuning import tuning

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(report: Report) -> str:
    """The whole HTML document. Everything taken from the report is escaped."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    parts: tuple[Callable[[Report], str], ...] = (
        _header,
        _verdict,
        headline,
        _notes,
        _search,
        _tuning,
        _answers,
        _quality,
        _cost,
        _layers,
        _calibration,
        _time,
        _settings,
        _circumstances,
        _reproduce,
        _footer,
    )
    if report.get("format") == "adapter":
        parts = tuple(part for part in parts if part not in _OF_PRESSED)
    body = "\n".join(filter(None, (part(report) for part in parts)))
    code, allowed = scripts(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}{allowed}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(model_name(report))}: {text(verdict(report).title)}</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n{code}</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """Anything from a report as HTML text or attribute value."""
    return escape(plain(value))


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def _unmeasured(what: str) -> str:
    return f'<p class="soft">{what}: {NOT_MEASURED}.</p>'


def _header(report: Report) -> str:
    source, target = section(report, "source"), section(report, "target")
    parameters, threads = number(source, "parameters"), number(target, "threads")
    what = [source.get("architecture"), parameters and f"{quantity(parameters / 1e6)} million parameters"]
    where = [target.get("provider"), target.get("device"), threads and f"{threads:.0f} threads"]
    lines = [", ".join(text(item) for item in items if item) for items in (what, where)]
    said = "<br>For ".join(filter(None, lines))
    return (
        f'<header>\n<p class="eyebrow">coldpress report</p>\n<h1>{text(model_name(report))}</h1>\n'
        f'<p class="made">{text(made(report))}</p>\n<p class="soft">{said}</p>\n</header>'
    )


def _notes(report: Report) -> str:
    """What one must know to read the numbers rightly."""
    points = "".join(f"<li>{text(note)}</li>" for note in section(report, "source").get("notes") or [])
    return f'<ul class="notes soft">{points}</ul>' if points else ""


def _verdict(report: Report) -> str:
    said = verdict(report)
    points = "".join(f"<li>{text(reason)}</li>" for reason in reasons(report))
    listed = f"<ul>{points}</ul>" if points else ""
    return (
        f'<section class="verdict {said.state}" aria-labelledby="verdict">\n<h2 id="verdict">{text(said.title)}</h2>\n'
        f"<p>{text(said.meaning)}</p>{listed}\n</section>"
    )


def _quality(report: Report) -> str:
    found = quality(report) + texts(report)
    return _section("How close it is to its source", found) if found else ""


def _cost(report: Report) -> str:
    lines = facts(report)
    on = measured_on(report)
    caption = f"Quality measured on {text(on)}." if on else "Against the source."
    return _section(
        "All numbers",
        f"{_size_bars(report)}\n<table><caption>{caption}</caption>"
        '<thead><tr><th scope="col">Measure</th><th scope="col" class="n">Source</th>'
        '<th scope="col" class="n">This model</th></tr></thead>'
        f"<tbody>{''.join(_fact_row(fact) for fact in lines)}</tbody></table>{_other_limits(report, lines)}",
    )


def _fact_row(fact: Fact) -> str:
    meaning = f"<small>{text(fact.meaning)}</small>" if fact.meaning else ""
    beside = "".join(
        f"<small>{text(words)}</small>" for words in (fact.change, fact.limit and f"allowed: {fact.limit}") if words
    )
    return (
        f'<tr><th scope="row">{text(fact.name)}{meaning}</th>'
        f"<td{_style(fact.source)}>{text(fact.source)}</td><td{_style(fact.model)}>{text(fact.model)}{beside}</td></tr>"
    )


def _style(value: str) -> str:
    return ' class="n none"' if value == NOT_MEASURED else ' class="n"'


def _other_limits(report: Report, shown: Sequence[Fact]) -> str:
    stated = {fact.key for fact in shown if fact.limit}
    others = [f"{text(key)} {text(value)}" for key, value in section(report, "tolerance").items() if key not in stated]
    return f'<p class="soft after">Further tolerances: {", ".join(others)}.</p>' if others else ""


def _size_bars(report: Report) -> str:
    before, after = number(section(report, "source"), "bytes"), number(section(report, "size"), "model_bytes")
    if not before or not after:
        return ""
    return bars(
        [("source", before / 1e6, size(before)), ("this model", after / 1e6, size(after))], "MB", "Size on disk"
    )


def _tuning(report: Report) -> str:
    found = tuning(report)
    return _section("Training", found) if found else ""


def _search(report: Report) -> str:
    found = search(report)
    return _section("The search", found) if found else ""


def _layers(report: Report) -> str:
    return _section("Error by layer", heat_map(entries(report, "layers")) or _unmeasured("Layers"))


def _calibration(report: Report) -> str:
    found = calibration(report)
    return _section("Calibration", found) if found else ""


def _answers(report: Report) -> str:
    found, kind = answers(report), task(report)
    could = report.get("format") == "onnx" and kind is not None and kind.runtime == "onnxruntime-genai"
    return _section("What it answers", found or _unmeasured("Answers")) if found or could else ""


def _time(report: Report) -> str:
    steps = [(plain(step.get("step", "")), number(step, "seconds")) for step in entries(report, "timings")]
    rows = [(name, duration, seconds(duration)) for name, duration in steps if duration is not None]
    if not rows:
        return _section("Time", _unmeasured("Time"))
    total = seconds(sum(duration for _, duration, _ in rows))
    return _section("Time", f'<p class="soft">{total} in all.</p>{bars(rows, "seconds", f"Time: {total} in all")}')


def _settings(report: Report) -> str:
    done = "".join(_pass_row(step) for step in entries(report, "passes"))
    if not done:
        return ""
    head = '<tr><th scope="col">Pass</th><th scope="col">Parameters</th><th scope="col" class="n">Time</th></tr>'
    return _section("How it was made", f"<table><thead>{head}</thead><tbody>{done}</tbody></table>")


def _pass_row(step: Mapping[str, Any]) -> str:
    chosen = " ".join(f"<code>{text(k)}={text(v)}</code>" for k, v in section(step, "parameters").items())
    cached = "<small>from the cache</small>" if step.get("cached") else ""
    return (
        f'<tr><th scope="row">{text(step.get("name", ""))}</th><td>{chosen or "defaults"}</td>'
        f'<td class="n">{seconds(number(step, "seconds"))}{cached}</td></tr>'
    )


def _circumstances(report: Report) -> str:
    groups = [(title, section(report, key)) for title, key in (("Machine", "machine"), ("Versions", "versions"))]
    lists = "".join(
        f'<div><h3>{title}</h3><dl class="pairs">'
        + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in found.items())
        + "</dl></div>"
        for title, found in groups
        if found
    )
    return _section("Where it was measured", f'<div class="columns">{lists}</div>') if lists else ""


def _reproduce(report: Report) -> str:
    command, code = report.get("command"), number(report, "exit_code")
    if not command:
        return ""
    ended = f'<p class="soft after">It ended with exit code {code:.0f}.</p>' if code is not None else ""
    return _section("Reproduce", f'<pre tabindex="0" aria-label="Command"><code>{text(command)}</code></pre>{ended}')


#: what there is nothing to say of where a model was trained, and not yet pressed
_OF_PRESSED = (headline, _cost, _layers, _answers)


def _footer(report: Report) -> str:
    origin = section(report, "source").get("origin")
    facts_known = [
        f"coldpress {text(report.get('coldpress', ''))}".strip(),
        text(report.get("created", "")),
        f"source read from: {text(origin)}" if origin else "",
    ]
    return f"<footer>{' · '.join(filter(None, facts_known))}. What is not shown was not measured.</footer>"
