"""What a terminal shows: a short table after a run, and a table of models side by side. Plain text elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coldpress.measuring.noise import is_tie
from coldpress.parts import Value
from coldpress.report import (
    Fact,
    Report,
    amount,
    called,
    entries,
    facts,
    model_name,
    number,
    plain,
    quantity,
    reasons,
    remark_on_size,
    seconds,
    section,
    verdict,
)
from coldpress.report.pareto import outcome, settings
from coldpress.report.tuning import lines

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_SHOWN = (
    "model_bytes",
    "bits_per_weight",
    "perplexity",
    "kl",
    "top1_agreement",
    "label_agreement",
    "cosine",
    "ranking",
    "adapter",
    "measured",
    "speed",
    "latency_ms",
    "first_token_ms",
    "prompt_tokens_per_second",
    "decode_tokens_per_second",
    "peak_mb",
)
_STYLES = {"good": "bold green", "bad": "bold red", "unknown": "bold yellow"}
#: columns of a table that goes into a file or a pipe, where nobody says how many there are
WIDTH_IN_FILES = 100
#: points of a search that a terminal shows, the best first
_POINTS = 20
_BEST, _TIE = "*", "≈"
_MEANINGS = {
    _BEST: "* best, by more than the noise of the measurements",
    _TIE: "≈ a tie: no difference beyond the noise",
}
Row = Mapping[str, Any]


def summary(report: Report) -> Group:
    """The table of a run and its verdict: size, quality against the source, speed, memory; or what a training did."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title=None, show_header=True, header_style="dim")
    table.add_column(Text(model_name(report)), overflow="ellipsis", no_wrap=True)
    if report.get("format") == "adapter":
        table.add_column("")
        for name, value in lines(report):
            table.add_row(Text(name), Text(value))
        return Group(table, Text(), _verdict(report))
    table.add_column("source", justify="right", no_wrap=True)
    table.add_column("model", justify="right", no_wrap=True)
    table.add_column("")
    for fact in facts(report):
        if fact.key in _SHOWN:
            table.add_row(Text(fact.name), fact.source, _value(fact), Text(_beside(fact), style="dim"))
    return Group(table, Text(), _verdict(report))


def points(report: Report) -> Group | None:
    """The points of a search: what was chosen for each, its numbers, what became of it; and why one was chosen.

    None for a run without a search.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    search = section(report, "search")
    found = {plain(one.get("number", "")): one for one in entries(search, "points")}
    if not found:
        return None
    objectives = entries(search, "objectives")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for title in ("point", "settings", *(_goal_title(one) for one in objectives), ""):
        is_text = title in ("settings", "")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold", no_wrap=bool(title))
    ranked = [name for name in map(plain, search.get("ranking") or []) if name in found]
    shown = [*ranked, *(name for name in found if name not in ranked)][:_POINTS]
    for name in shown:
        numbers = section(found[name], "numbers")
        cells = [
            amount(number(numbers, plain(one.get("number", ""))), plain(one.get("unit", ""))) for one in objectives
        ]
        is_chosen = name == plain(search.get("chosen", ""))
        row = (name, " ".join(settings(section(found[name], "parameters"))), *cells, outcome(search, found[name]))
        table.add_row(*map(Text, row), style="bold" if is_chosen else "")
    rest = f"and {len(found) - len(shown)} more in report.html" if len(found) > len(shown) else ""
    return Group(table, Text(rest, style="dim"), Text(plain(search.get("why", ""))), Text())


def _goal_title(objective: Mapping[str, Any]) -> str:
    """The number of a goal as people call it."""
    return called(plain(objective.get("number", "")).rpartition(".")[2], plain(objective.get("unit", "")))


def onward(report: Report, output: str, elapsed: float, better: str | None = None, *, is_new: bool = True) -> Text:
    """Where the result lies, what to type next, how long it took and what would be ``better``."""
    from rich.text import Text

    lines = [(output, "the model"), (f"{output}/report.html", "the report, for a browser")]
    lines += [(command, what) for command, what in [_next_command(report, output)] if command]
    width = max(len(place) for place, _ in lines) + 3
    text = Text("\n")
    for place, what in lines:
        text.append(f"{plain(place):<{width}}", style="bold").append(f"{what}\n", style="dim")
    text.append(f"{_took(report, elapsed)}\n" if is_new else "It was there already; nothing was done.\n")
    for line in filter(None, (remark_on_size(report), better)):
        text.append(f"{line}\n")
    text.rstrip()
    return text


def _next_command(report: Report, output: str) -> tuple[str, str]:
    """What one would do with a result, and why."""
    place = shlex.quote(output)
    if report.get("format") in ("hf", "adapter"):
        return f"coldpress auto-opt {place}", "makes it an ONNX model"
    if report.get("format") == "onnx" and (report.get("answers") or section(report, "speed")):
        return f"coldpress chat {place}", "talks to it"
    return "", ""


def _took(report: Report, elapsed: float) -> str:
    """How long a run took, and its parts; those found in the cache tell what they took when they were made."""
    parts = [(one.get("step", ""), number(one, "seconds") or 0.0) for one in entries(report, "timings")]
    told = ", ".join(f"{plain(step)} {seconds(taken)}" for step, taken in parts if taken >= 0.05)
    if not told:
        return f"{seconds(elapsed)} in all"
    if sum(taken for _, taken in parts) > elapsed:
        return f"{seconds(elapsed)} in all; from the cache, at least in part: {told} when that was made"
    return f"{seconds(elapsed)} in all: {told}"


def as_text(renderable: Group | Table) -> str:
    """What is meant for a terminal as plain text."""
    from rich.console import Console

    console = Console(width=WIDTH_IN_FILES, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get().rstrip()


def comparison(rows: Sequence[Row], columns: Mapping[str, Value]) -> Table:
    """Models side by side. A row is ``{"name": ..., metric: number}``, or ``metric: {"value": 21.3, "spread": 0.2}``.

    ``spread`` is half the width of what repeated measurements covered. The best value of a metric is marked only if its
    interval lies clear of every other model's, or, where the ``rounds`` of both are known, if it is better by more than
    noise; those that tie with the best are marked as such. The longer of the two lists, models or metrics, goes down.
    """
    from rich.table import Table
    from rich.text import Text

    marks = {metric: _marks(rows, metric, described.better) for metric, described in columns.items()}
    heads = [Text(plain(row.get("name", ""))) for row in rows]
    titles = [Text(_title(metric, described)) for metric, described in columns.items()]
    grid = [
        [_compared(row, metric, marks[metric].get(index, "")) for metric in columns] for index, row in enumerate(rows)
    ]
    if len(columns) > len(rows):
        heads, titles, grid = titles, heads, [list(line) for line in zip(*grid, strict=True)]
    used = {mark for marked in marks.values() for mark in marked.values()}
    note = "; ".join(meaning for mark, meaning in _MEANINGS.items() if mark in used) or None
    table = Table(
        box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", caption=note, caption_justify="left"
    )
    table.add_column("", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", overflow="fold")
    for head, line in zip(heads, grid, strict=True):
        table.add_row(head, *line)
    return table


#: what is compared of results: section of the report, number, title, which way is better, unit, and a factor for that
_SIDE_BY_SIDE = (
    ("size", "model_bytes", "size", "lower", "MB", 1e-6),
    ("size", "bits_per_weight", "bits per weight", "lower", "", 1),
    ("quality", "perplexity", "perplexity", "lower", "", 1),
    ("quality", "kl", "kl", "lower", "nats", 1),
    ("quality", "top1_agreement", "same next token", "higher", "%", 100),
    ("speed", "first_token_ms", "first token", "lower", "ms", 1),
    ("speed", "decode_tokens_per_second", "decode", "higher", "tokens/s", 1),
    ("memory", "peak_memory_mb", "peak memory", "lower", "MB", 1),
)


def side_by_side(reports: Mapping[str, Report]) -> tuple[list[Row], dict[str, Value]]:
    """Rows and columns for `comparison`: what reports, by the names they are shown under, know of the same numbers.

    A verdict other than "verified" stands behind the name.
    """
    rows: list[Row] = []
    for name, report in reports.items():
        known = {
            title: factor * value
            for part, key, title, _, _, factor in _SIDE_BY_SIDE
            if (value := number(section(report, part), key)) is not None
        }
        said = verdict(report)
        rows.append({"name": name if said.state == "good" else f"{name} ({said.title.lower()})", **known})
    measured = {title for row in rows for title in row}
    return rows, {title: Value(way, unit) for _, _, title, way, unit, _ in _SIDE_BY_SIDE if title in measured}


def _value(fact: Fact) -> Any:
    from rich.text import Text

    return Text(fact.model, style="" if fact.measured else "dim")


def _beside(fact: Fact) -> str:
    return ", ".join(filter(None, (fact.change, fact.limit)))


def _verdict(report: Report) -> Any:
    from rich.text import Text

    said = verdict(report)
    why = plain(" ".join(reasons(report)) or said.meaning)
    return Text.assemble((said.title, _STYLES[said.state]), ". ", why)


def _title(metric: str, described: Value) -> str:
    unit = described.unit
    return f"{metric.replace(f'_{unit}', '').replace('_', ' ')} [{unit}]" if unit else metric.replace("_", " ")


def _measured(row: Row, metric: str) -> tuple[float | None, float]:
    given = row.get(metric)
    if isinstance(given, Mapping):
        return number(given, "value"), number(given, "spread") or 0.0
    return number(row, metric), 0.0


def _marks(rows: Sequence[Row], metric: str, better: str) -> dict[int, str]:
    """Index of a row -> its mark: the one model that is better than all others, or those that tie for the best
    place."""
    if better not in ("lower", "higher"):
        return {}
    sign = -1.0 if better == "lower" else 1.0
    known = [(sign * value, i) for i, row in enumerate(rows) if (value := _measured(row, metric)[0]) is not None]
    if len(known) < 2:
        return {}
    _, top = max(known)
    tied = [i for _, i in known if i != top and _ties(rows[i], rows[top], metric)]
    if not tied:
        return {top: _BEST}
    is_noise = any(_measured(rows[i], metric)[1] for i in (top, *tied))
    return dict.fromkeys([top, *tied], _TIE) if is_noise else {}


def _ties(one: Row, other: Row, metric: str) -> bool:
    """Whether two models cannot be told apart in a number."""
    rounds = [row[metric].get("rounds") if isinstance(row[metric], Mapping) else None for row in (one, other)]
    if rounds[0] and rounds[1] and len(rounds[0]) == len(rounds[1]):
        return is_tie(rounds[0], rounds[1])
    (value, spread), (rival, rivals_spread) = _measured(one, metric), _measured(other, metric)
    assert value is not None and rival is not None
    return abs(value - rival) <= spread + rivals_spread


def _compared(row: Row, metric: str, mark: str) -> Any:
    from rich.text import Text

    value, spread = _measured(row, metric)
    if value is None:
        return Text("-", style="dim")
    within = f" ± {quantity(spread)}" if spread else ""
    return Text(f"{quantity(value)}{within} {mark or ' '}", style="bold" if mark == _BEST else "")
