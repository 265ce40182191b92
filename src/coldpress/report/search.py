"""The search in a report: what was chosen and why, the Pareto front, and a table of all points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from coldpress.report import NOT_MEASURED, Report, entries, number, plain, quantity, seconds, section, size
from coldpress.report.pareto import OUTCOMES, drawings, kind_of, settings

Search = Mapping[str, Any]


def search(report: Report) -> str:
    """The section's HTML; empty for a run without a search."""
    found = section(report, "search")
    if not entries(found, "points"):
        return ""
    why = f'<p class="lead">{_text(found.get("why", ""))}</p>'
    return "\n".join((why, _pictures(found), _goals(found), _table(found), _end(found)))


def _text(value: Any) -> str:
    return escape(plain(value))


def _pictures(found: Search) -> str:
    """The trade-off of the two numbers that count most, and the other pairs folded away."""
    first, *others = drawings(found).items() or [("", "")]
    folded = "".join(f"<h3>{_text(title)}</h3>{html}" for title, html in others)
    more = f"<details><summary>The other pairs of numbers</summary>{folded}</details>" if folded else ""
    title, html = first
    if not html:
        return ""
    return (
        f'<h3>{_text(title)}</h3>{html}<p class="soft">The dashed steps are the front, a red line the limit of a goal.'
        f" A point tells its numbers under the pointer; a click finds it in the table.</p>{more}"
    )


def _goals(found: Search) -> str:
    rows = "".join(_goal(one, section(found, "source")) for one in entries(found, "objectives"))
    head = "".join(f'<th scope="col"{_end_of(i)}>{name}</th>' for i, name in enumerate(_GOAL_HEADS))
    table = f"<table><caption>Goals</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Goals">{table}</div>'


_GOAL_HEADS = ("Number", "Better", "Priority", "Source", "Limit", "Goal")


def _goal(one: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    name, limit, before = one.get("number", ""), number(one, "limit"), number(source, plain(one.get("number", "")))
    asked = ", ".join(f"{key} {plain(value)}" for key, value in section(one, "goal").items() if key != "priority")
    cells = [
        plain(one.get("better", "")),
        plain(one.get("priority") or "watched"),
        "" if before is None else amount(before, one),
        "" if limit is None else amount(limit, one),
        asked,
    ]
    drawn = "".join(f"<td{_end_of(i)}>{_text(cell)}</td>" for i, cell in enumerate(cells, start=1))
    unit = f" <small>{_text(one['unit'])}</small>" if one.get("unit") else ""
    return f'<tr><th scope="row">{_text(name)}{unit}</th>{drawn}</tr>'


def _end_of(column: int) -> str:
    return ' class="n"' if column in (3, 4) else ""


def _table(found: Search) -> str:
    """All points; the columns sort at a click."""
    objectives = entries(found, "objectives")
    labels = [plain(one.get("number", "")) for one in objectives]
    names = [("Point", True), ("What was chosen", False), *((label, True) for label in labels), ("Outcome", False),
             ("Time", True)]  # fmt: skip
    head = "".join(
        f'<th scope="col"{" class=n" if is_number and i else ""}><button type="button">{_text(name)}</button></th>'
        for i, (name, is_number) in enumerate(names)
    )
    rows = "".join(_row(found, point, objectives) for point in entries(found, "points"))
    return (
        f'<div class="scroll tall" tabindex="0" role="region" aria-label="All points">'
        f'<table id="points" class="sortable"><caption>All {len(entries(found, "points"))} points</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(found: Search, point: Mapping[str, Any], objectives: Sequence[Mapping[str, Any]]) -> str:
    index, numbers = point.get("number"), section(point, "numbers")
    chosen = " ".join(f"<code>{_text(setting)}</code>" for setting in settings(section(point, "parameters")))
    cells = "".join(_number(number(numbers, plain(one.get("number", ""))), one) for one in objectives)
    duration = number(point, "seconds")
    kept = section(found, "kept").get(plain(index))
    folder = f"<small>kept in {_text(kept)}</small>" if kept else ""
    return (
        f'<tr data-point="{_text(index)}"{" class=chosen" if index == found.get("chosen") else ""}>'
        f'<th scope="row" data-value="{_text(index)}">{_text(index)}</th><td>{chosen}</td>{cells}'
        f"<td>{_outcome(found, point)}{folder}</td>"
        f'<td class="n" data-value="{duration or 0}">{seconds(duration)}</td></tr>'
    )


def _number(value: float | None, objective: Mapping[str, Any]) -> str:
    if value is None:
        return f'<td class="n none">{NOT_MEASURED}</td>'
    return f'<td class="n" data-value="{value!r}">{amount(value, objective)}</td>'


def amount(value: float, objective: Mapping[str, Any]) -> str:
    """A number of an objective, without its unit unless that is bytes."""
    return size(value) if objective.get("unit") == "bytes" else quantity(value)


def _outcome(found: Search, point: Mapping[str, Any]) -> str:
    words = "chosen" if point.get("number") == found.get("chosen") else OUTCOMES[kind_of(found, point)]
    reason = f"<small>{_text(point['reason'])}</small>" if point.get("reason") else ""
    trace = point.get("traceback")
    final = section(section(found, "finals"), plain(point.get("number")))
    turns = ", ".join(f"{plain(name)} {quantity(median(rounds))}" for name, rounds in final.items() if rounds)
    reason += f"<small>in turns: {_text(turns)}</small>" if turns else ""
    details = f"<details><summary>traceback</summary><pre>{_text(trace)}</pre></details>" if trace else ""
    return f"{words}{reason}{details}"


def _end(found: Search) -> str:
    size = number(found, "size")
    of = "" if size is None else f" of {size:,.0f}"
    words = (
        f"{len(entries(found, 'points')):,}{of} points with the sampler {plain(found.get('sampler', ''))} in "
        f"{seconds(number(found, 'seconds'))}; it ended because {plain(found.get('stopped', ''))}. "
        "optuna.journal holds them for optuna-dashboard, best.yaml makes the chosen one again."
    )
    return f'<p class="soft after">{_text(words)}</p>'
