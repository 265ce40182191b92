"""What a terminal shows: a short table after a run, and a table of models side by side. Plain text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coldpress.parts import Value
from coldpress.report import Fact, Report, facts, model_name, number, plain, quantity, reasons, verdict

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_SHOWN = (
    "model_bytes",
    "bits_per_weight",
    "perplexity",
    "kl",
    "top1_agreement",
    "speed",
    "first_token_ms",
    "prompt_tokens_per_second",
    "decode_tokens_per_second",
    "peak_mb",
)
_STYLES = {"good": "bold green", "bad": "bold red", "unknown": "bold yellow"}
_BEST = "*"
Row = Mapping[str, Any]


def summary(report: Report) -> Group:
    """The table of a run and its verdict: size, quality against the source, speed, memory."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title=None, show_header=True, header_style="dim")
    table.add_column(Text(model_name(report)), overflow="fold")
    table.add_column("source", justify="right")
    table.add_column("model", justify="right")
    table.add_column("")
    for fact in facts(report):
        if fact.key in _SHOWN:
            table.add_row(Text(fact.name), fact.source, _value(fact), Text(_beside(fact), style="dim"))
    return Group(table, Text(), _verdict(report))


def comparison(rows: Sequence[Row], columns: Mapping[str, Value]) -> Table:
    """Models side by side. A row is ``{"name": ..., metric: number}``, or ``metric: {"value": 21.3, "spread": 0.2}``.

    ``spread`` is half the width of what repeated measurements covered. The best value of a metric is marked only
    if its interval lies clear of every other model's. The longer of the two lists, models or metrics, goes down.
    """
    from rich.table import Table
    from rich.text import Text

    best = {metric: _best(rows, metric, described.better) for metric, described in columns.items()}
    heads = [Text(plain(row.get("name", ""))) for row in rows]
    titles = [Text(_title(metric, described)) for metric, described in columns.items()]
    grid = [
        [_compared(row, metric, marked=best[metric] == index) for metric in columns] for index, row in enumerate(rows)
    ]
    if len(columns) > len(rows):
        heads, titles, grid = titles, heads, [list(line) for line in zip(*grid, strict=True)]
    note = (
        f"{_BEST} best, by more than the spread of the measurements"
        if any(i is not None for i in best.values())
        else None
    )
    table = Table(
        box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", caption=note, caption_justify="left"
    )
    table.add_column("", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", overflow="fold")
    for head, line in zip(heads, grid, strict=True):
        table.add_row(head, *line)
    return table


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
    name = metric.replace(f"_{described.unit}", "").replace("_", " ")
    return f"{name} [{described.unit}]" if described.unit else name


def _measured(row: Row, metric: str) -> tuple[float | None, float]:
    given = row.get(metric)
    if isinstance(given, Mapping):
        return number(given, "value"), number(given, "spread") or 0.0
    return number(row, metric), 0.0


def _best(rows: Sequence[Row], metric: str, better: str) -> int | None:
    """The index of the one model that is better than all others by more than both spreads, if there is one."""
    if better not in ("lower", "higher"):
        return None
    sign = -1.0 if better == "lower" else 1.0
    known = [(sign * value, spread, i) for i, row in enumerate(rows) for value, spread in [_measured(row, metric)]
             if value is not None]  # fmt: skip
    if len(known) < 2:
        return None
    top, spread, index = max(known)
    clear = all(top - spread > value + other for value, other, i in known if i != index)
    return index if clear else None


def _compared(row: Row, metric: str, marked: bool) -> Any:
    from rich.text import Text

    value, spread = _measured(row, metric)
    if value is None:
        return Text("-", style="dim")
    within = f" ± {quantity(spread)}" if spread else ""
    return Text(f"{quantity(value)}{within}{' ' + _BEST if marked else '  '}", style="bold" if marked else "")
