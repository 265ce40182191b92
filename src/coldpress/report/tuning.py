"""What a training did: the loss of each step as a picture, and of the rows held out before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from coldpress.report import Report, number, plain, quantity, seconds, section

_WIDTH, _HEIGHT = 600.0, 120.0


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
    if before is not None and after is not None:
        told.insert(0, ("Loss on rows held out", f"{after:.3f} after {before:.3f}"))
    return told


def _picture(found: Mapping[str, Any]) -> str:
    points = [(float(step), float(loss)) for step, loss in found.get("loss") or []]
    if len(points) < 2:
        return ""
    losses = [loss for _, loss in points]
    low, high = min(losses), max(losses)
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in _placed(points, low, high))
    caption = f"Loss from step {points[0][0]:.0f} to {points[-1][0]:.0f}: between {high:.3f} and {low:.3f}."
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(caption)}" '
        f'preserveAspectRatio="none"><polyline class="curve" points="{drawn}"/></svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _placed(points: Sequence[tuple[float, float]], low: float, high: float) -> list[tuple[float, float]]:
    """Points of the picture: steps from left to right, losses from the bottom up."""
    first, span, spread = points[0][0], points[-1][0] - points[0][0] or 1.0, high - low or 1.0
    room = _HEIGHT - 8
    return [(_WIDTH * (step - first) / span, 4 + room * (1 - (loss - low) / spread)) for step, loss in points]
