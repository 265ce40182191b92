"""What a search found, as charts: one for each pair of numbers, a mark for each point, a line along the front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from coldpress.report import called, entries, number, plain, quantity, section
from coldpress.report.charts import MEASURED, NAMED, chart

_HEIGHT = 320
_NUMBERS = 4
#: kind of a point -> what is said of it
OUTCOMES = {
    "best": "on the front",
    "meets": "meets all goals",
    "misses": "misses a goal",
    "dropped": "dropped after a first look",
    "failed": "failed",
}
_CHOSEN = "chosen"
#: what is said of a point -> fill and line of its mark
_MARKS = {
    _CHOSEN: ("var(--good)", "var(--ink)"),
    OUTCOMES["best"]: ("var(--mark)", "var(--mark)"),
    OUTCOMES["meets"]: ("var(--soft-mark)", "var(--mark)"),
    OUTCOMES["misses"]: ("var(--paper)", "var(--bad)"),
    OUTCOMES["dropped"]: ("var(--paper)", "var(--quiet)"),
}
Search = Mapping[str, Any]
Point = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """One number of the points; ``name`` None stands for the order in which they were tried.

    ``factor``: from the number to the unit that is shown.
    """

    name: str | None
    better: str = ""
    unit: str = ""
    limit: float | None = None
    factor: float = 1.0

    @classmethod
    def of_objective(cls, one: Mapping[str, Any]) -> Axis:
        unit, limit = plain(one.get("unit", "")), number(one, "limit")
        unit, factor = ("MB", 1e-6) if unit == "bytes" else (unit, 1.0)  # as pages tell sizes
        return cls(plain(one.get("number", "")), plain(one.get("better", "")), unit, limit, factor)

    def of(self, point: Point) -> float | None:
        if self.name is None:
            return number(point, "number")
        found = number(section(point, "numbers"), self.name)
        return None if found is None else found * self.factor

    @property
    def title(self) -> str:
        if self.name is None:
            return "points in the order they were tried"
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.short}{unit}, {self.better} is better"

    @property
    def short(self) -> str:
        """What people call it."""
        if self.name is None:
            return "order"
        metric, _, last = self.name.rpartition(".")
        said = called(last, self.unit)
        return said if metric in (said, "") or metric in last or said == "size" else f"{metric} {said}"


def axes(search: Search) -> list[Axis]:
    """The numbers of the goals, those that rank first; at most four."""
    found = entries(search, "objectives")
    ranked = sorted(found, key=lambda one: number(one, "priority") or math.inf)
    return [Axis.of_objective(one) for one in ranked[:_NUMBERS]]


def drawings(search: Search) -> dict[str, str]:
    """A chart for each two numbers, and for each number in the order of points; title -> HTML.

    The first is the trade-off of the two numbers that count most; the better it is in the first of them, the lower, or
    the higher, a point lies.
    """
    numbers = axes(search)
    pairs = [*((x, y) for y, x in combinations(numbers, 2)), *((Axis(None), one) for one in numbers)]
    drawn = {f"{y.short} against {x.short}": _drawing(search, x, y) for x, y in pairs}
    return {title: html for title, html in drawn.items() if html}


def _drawing(search: Search, x: Axis, y: Axis) -> str:
    """One chart; empty when no point has both numbers."""
    points = [
        {"point": int(point["number"]), "x": a, "y": b, "outcome": _kind(search, point), "told": described(point),
         "state": plain(point.get("state", ""))}
        for point in entries(search, "points") if (a := x.of(point)) is not None and (b := y.of(point)) is not None
    ]  # fmt: skip
    if not points:
        return ""
    layers = [
        *(
            _limit(axis.limit * axis.factor, channel)
            for channel, axis in (("x", x), ("y", y))
            if axis.limit is not None
        ),
        *([] if x.name is None else [_front(points, x, y)]),
        _marks(points, x, y),
    ]
    title = f"{y.short} against {x.short}, {len(points)} points"
    return chart({"height": _HEIGHT, "data": {"values": [{}]}, "layer": layers}, title)


def _channel(name: str, axis: Axis) -> dict[str, Any]:
    ticks = {"title": axis.title, "grid": True} | (
        {"tickMinStep": 1, "format": "d"} if axis.name is None else {"format": ".4~s"}
    )
    return {"field": name, "type": MEASURED, "scale": {"zero": False, "padding": 14}, "axis": ticks}


def _marks(points: Sequence[Mapping[str, Any]], x: Axis, y: Axis) -> dict[str, Any]:
    """The points themselves; each tells all of it."""
    met = [outcome for outcome in _MARKS if any(point["outcome"] == outcome for point in points)]
    colours = [{"domain": met, "range": [_MARKS[one][part] for one in met]} for part in (0, 1)]
    shown = {"field": "outcome", "type": NAMED, "title": None}
    legend = {"columns": 2, "symbolSize": 90, "symbolStrokeWidth": 1.5}
    return {
        "data": {"values": points},
        "mark": {"type": "point", "filled": True, "strokeWidth": 1.5, "opacity": 1, "cursor": "pointer"},
        "encoding": {
            "x": _channel("x", x),
            "y": _channel("y", y),
            "fill": {**shown, "scale": colours[0], "legend": legend},
            "stroke": {**shown, "scale": colours[1], "legend": legend},
            "size": {"condition": {"test": f"datum.outcome === '{_CHOSEN}'", "value": 190}, "value": 90},
            "tooltip": [
                {"field": "told", "title": "point"},
                {"field": "y", "title": y.title, "format": ".4~g"},
                {"field": "x", "title": x.title, "format": ".4~g"},
                {"field": "outcome"},
            ],
        },
    }


def _limit(value: float, channel: str) -> dict[str, Any]:
    """A line where a goal ends."""
    words = {"x": {"align": "left", "dx": 4, "dy": 8, "y": 0}, "y": {"align": "right", "dy": -6, "x": "width"}}[channel]
    place = {channel: {"datum": value, "type": MEASURED}}
    line = {"mark": {"type": "rule", "stroke": "var(--bad)", "strokeDash": [4, 3]}, "encoding": place}
    text = {"mark": {"type": "text", "fill": "var(--bad)", "text": "limit", **words}, "encoding": place}
    return {"layer": [line, text]}


def _front(points: Sequence[Mapping[str, Any]], x: Axis, y: Axis) -> dict[str, Any]:
    """Steps along the points that none is better than in both numbers."""
    signs = [-1 if axis.better == "higher" else 1 for axis in (x, y)]
    best, front = math.inf, list[dict[str, Any]]()
    for point in sorted(points, key=lambda one: (signs[0] * one["x"], signs[1] * one["y"])):
        if signs[1] * point["y"] < best and point["state"] == "complete":
            best = signs[1] * point["y"]
            front.append({"x": point["x"], "y": point["y"], "order": len(front)})
    line = {"type": "line", "stroke": "var(--mark)", "strokeDash": [5, 3], "interpolate": "step-after"}
    return {
        "data": {"values": front},
        "mark": line,
        "encoding": {"x": _channel("x", x), "y": _channel("y", y), "order": {"field": "order"}},
    }


def _kind(search: Search, point: Point) -> str:
    return _CHOSEN if point.get("number") == search.get("chosen") else OUTCOMES[kind_of(search, point)]


def kind_of(search: Search, point: Point) -> str:
    """How a point is drawn: on the front, meeting all goals, missing one, dropped early or failed."""
    state = plain(point.get("state", ""))
    if state in ("dropped", "failed"):
        return state
    if not point.get("meets_goals"):
        return "misses"
    return "best" if point.get("number") in (search.get("front") or []) else "meets"


def outcome(search: Search, point: Point) -> str:
    """What became of a point, in words; why, where it is not among the results."""
    return ": ".join(filter(None, (_kind(search, point), plain(point.get("reason") or "").partition("\n")[0])))


def described(point: Point) -> str:
    """A point in a line: its number, what was chosen, what was measured."""
    chosen = settings(section(point, "parameters"))
    measured = ", ".join(
        f"{plain(name)} {quantity(value)}"
        for name in section(point, "numbers")
        if (value := number(section(point, "numbers"), name)) is not None
    )
    return f"point {plain(point.get('number', ''))}: {', '.join(chosen)}; {measured}"


def settings(parameters: Mapping[str, Any]) -> Iterable[str]:
    return [f"{plain(name)}={plain(value)}" for name, value in parameters.items()]
