"""What a training did: the loss of each step as a picture, and of the rows held out before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from coldpress.report import Report, number, plain, quantity, seconds, section
from coldpress.report.charts import MEASURED, NAMED, chart


def tuning(report: Report) -> str:
    """The section's HTML; empty for a run that trained nothing."""
    found = section(report, "tuning")
    if not found:
        return ""
    return (
        f"{_picture(found)}<dl"
        f' class="pairs">{"".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in lines(report))}</dl>'
    )


def lines(report: Report) -> list[tuple[str, str]]:
    """Names and values, as text, in reading order; empty for a run that trained nothing."""
    found = section(report, "tuning")
    if not found:
        return []
    held_out = section(found, "held_out")
    before, after = number(held_out, "loss_before"), number(held_out, "loss_after")
    rows, cut = number(found, "rows"), number(found, "truncated_rows")
    told = [
        ("Method", plain(found.get("method", ""))),
        ("Rows", quantity(rows) + (f", {quantity(cut)} of them cut" if cut else "")),
        ("Steps", f"{quantity(number(found, 'steps'))} of {quantity(number(found, 'rows_in_step'))} rows"),
        ("Time of a step", seconds(number(found, "seconds_per_step"))),
        ("Trained parameters", quantity(number(found, "trained_parameters"))),
        ("Products in", plain(found.get("dtype", ""))),
    ]
    told += [
        (plain(name).replace("_", " ").capitalize(), f"{value:g}" if isinstance(value, int | float) else plain(value))
        for name, value in found.get("settings") or []
    ]
    if before is not None and after is not None:
        told.insert(0, ("Loss on rows held out", f"{after:.3f} after {before:.3f}"))
    return told


def _picture(found: Mapping[str, Any]) -> str:
    """Loss of the rows that were trained on, and of those held out before the first and after the last step."""
    trained = [{"step": step, "loss": loss, "of": _TRAINED} for step, loss in found.get("loss") or []]
    if len(trained) < 2:
        return ""
    told = section(found, "held_out")
    ends = ((0, number(told, "loss_before")), (trained[-1]["step"], number(told, "loss_after")))
    held_out = [{"step": step, "loss": loss, "of": _HELD_OUT} for step, loss in ends if loss is not None]
    colours = {"domain": [_TRAINED, _HELD_OUT], "range": ["var(--mark)", "var(--h4)"]}
    encoding = {
        "x": {"field": "step", "type": MEASURED, "title": "step", "axis": {"tickMinStep": 1, "format": "d"}},
        "y": {"field": "loss", "type": MEASURED, "title": "loss [nats per token]", "scale": {"zero": False}},
        "color": {"field": "of", "type": NAMED, "title": None, "scale": colours},
        "tooltip": [{"field": "of", "title": "loss"}, {"field": "step"}, {"field": "loss", "format": ".3f"}],
    }
    layers = [
        {"data": {"values": trained}, "mark": {"type": "line", "strokeWidth": 1.5, "point": len(trained) < _MARKED}},
        {"data": {"values": held_out}, "mark": {"type": "line", "strokeDash": [5, 3], "point": {"size": 90}}},
    ]
    losses = [point["loss"] for point in trained]
    title = (
        f"Loss from step {trained[0]['step']} to {trained[-1]['step']}: between {max(losses):.3f} and {min(losses):.3f}"
    )
    return chart({"height": 240, "encoding": encoding, "layer": layers}, title)


_TRAINED, _HELD_OUT = "rows trained on", "rows held out"
#: a curve of fewer points shows them
_MARKED = 40
