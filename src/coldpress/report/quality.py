"""How far a model is from its source: where it lies beside what is usual and allowed, and how that is spread."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from coldpress.parts.task import Criterion
from coldpress.report import Report, entries, number, precision, quantity, section, share, task
from coldpress.report.charts import MEASURED, chart

#: the scale of divergences: from what float32 does to a model that says something else
_LEAST, _MOST = 1e-6, 10.0


def quality(report: Report) -> str:
    """The section's HTML; empty where no divergence was measured."""
    kind, numbers = task(report), section(report, "quality")
    one = next((one for one in kind.criteria if one.name == "kl"), None) if kind else None
    value = number(numbers, "kl")
    if one is None or value is None:
        return ""
    return _scale(report, one, value) + _percentiles(section(numbers, "kl_spread")) + _same(numbers)


def _scale(report: Report, one: Criterion, value: float) -> str:
    """The divergence on a logarithmic line, with its limit and what is usual for the precision."""
    made_in, limit = precision(report) or "", number(section(report, "tolerance"), one.name)
    title = f"{one.title} [nats per token]"
    layers = [*_usual(one, made_in, title), *_limit(limit, title)]
    told = {"x": _place(min(max(value, _LEAST), _MOST), title), "tooltip": {"value": f"this model: {quantity(value)}"}}
    point = {"type": "point", "filled": True, "size": 160, "fill": "var(--mark)", "stroke": "var(--paper)", "y": 32}
    layers.append({"mark": {**point, "opacity": 1}, "encoding": told})
    said = f"{one.title} {quantity(value)} nats per token"
    return f"<h3>{escape(said)}</h3>{chart({'height': 62, 'data': {'values': [{}]}, 'layer': layers}, said)}"


def _usual(one: Criterion, made_in: str, title: str) -> list[dict[str, Any]]:
    """A band between what is usual; nothing where nobody knows."""
    if made_in not in one.usual:
        return []
    low, high = (max(bound, _LEAST) for bound in one.usual[made_in])
    words = {"type": "text", "align": "left", "baseline": "bottom", "y": -3, "fill": "var(--soft)"}
    return [
        {"mark": {"type": "rect", "fill": "var(--h1)"}, "encoding": {"x": _place(low, title), "x2": {"datum": high}}},
        {"mark": {**words, "text": f"usual for {made_in}"}, "encoding": {"x": _place(low, title)}},
    ]


def _limit(limit: float | None, title: str) -> list[dict[str, Any]]:
    """A line with its name."""
    if limit is None:
        return []
    words = {"type": "text", "align": "left", "dx": 4, "y": 52, "text": "limit", "fill": "var(--bad)"}
    place = {"x": _place(limit, title)}
    return [{"mark": {"type": "rule", "stroke": "var(--bad)"}, "encoding": place}, {"mark": words, "encoding": place}]


def _place(value: float, title: str) -> dict[str, Any]:
    """A place on the line."""
    scale = {"type": "log", "domain": [_LEAST, _MOST]}
    axis = {"title": title, "format": "~g", "values": [10.0**power for power in range(-6, 2)], "grid": True}
    return {"datum": value, "type": MEASURED, "scale": scale, "axis": axis}


def _percentiles(spread: Mapping[str, Any]) -> str:
    """The divergence of single tokens: mean and percentiles, each with its error."""
    if not spread:
        return ""
    mean, error = (number(spread, key) for key in ("mean", "mean_error"))
    rows = [("Mean", mean, f"± {quantity(error)}" if error is not None else "")]
    rows += [
        (_NAMES.get(at, f"{at:g} %"), number(one, "value"), " to ".join(quantity(number(one, end)) for end in _ENDS))
        for one in entries(spread, "percentiles")
        if (at := number(one, "at")) is not None
    ]
    rows.append(("Most", number(spread, "most"), ""))
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td class="n">{quantity(value)}</td><td class="n">{within}</td></tr>'
        for name, value, within in rows
    )
    titles = ("KL divergence by token", "nats", "error")
    head = "".join(f'<th scope="col"{" class=n" if i else ""}>{title}</th>' for i, title in enumerate(titles))
    counted = f"{number(spread, 'tokens') or 0:,.0f} tokens. Errors are one standard deviation, of a percentile's rank."
    return f"<table><caption>{counted}</caption><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"


_NAMES, _ENDS = {50.0: "Median"}, ("low", "high")


def _same(numbers: Mapping[str, Any]) -> str:
    same, error = number(numbers, "top1_agreement"), number(numbers, "top1_error")
    if same is None or error is None:
        return ""
    return f'<p class="after">Both prefer the same next token at {share(same)} ± {share(error)} of the places.</p>'
