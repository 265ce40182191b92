"""What a search found, as pictures: one drawing for each pair of numbers, a mark for each point, a line along the
front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Any

from coldpress.report import entries, number, plain, quantity, section, size

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 18, 14, 48
_NUMBERS = 4
_TICKS = 6
#: kind of a point -> what is said of it
OUTCOMES = {
    "best": "on the front",
    "meets": "meets all goals",
    "misses": "misses a goal",
    "dropped": "dropped after a first look",
    "failed": "failed",
}
Search = Mapping[str, Any]
Point = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """One number of the points; ``name`` None stands for the order in which they were tried."""

    name: str | None
    better: str = ""
    unit: str = ""
    limit: float | None = None

    def of(self, point: Point) -> float | None:
        return number(point, "number") if self.name is None else number(section(point, "numbers"), self.name)

    @property
    def title(self) -> str:
        if self.name is None:
            return "points in the order they were tried"
        unit = f" [{self.unit}]" if self.unit not in ("", "bytes") else ""
        return f"{self.name}{unit}, {self.better} is better"

    @property
    def short(self) -> str:
        return self.name or "order"

    def said(self, value: float) -> str:
        """A number as briefly as an axis needs it."""
        if self.unit == "bytes":
            return size(value)
        for letter, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= 10 * factor:
                return f"{quantity(value / factor)} {letter}"
        return quantity(value)


@dataclass(frozen=True)
class _Scale:
    """From numbers to pixels between ``start`` and ``end``; ``ticks`` are round numbers."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


def axes(search: Search) -> list[Axis]:
    """The numbers that rank the points, at most four: those with a priority, or all with a goal if none has one."""
    found = entries(search, "objectives")
    ranking = [one for one in found if one.get("priority") is not None] or found
    return [
        Axis(
            plain(one.get("number", "")), plain(one.get("better", "")), plain(one.get("unit", "")), number(one, "limit")
        )
        for one in ranking[:_NUMBERS]
    ]


def drawings(search: Search) -> dict[str, str]:
    """A drawing for each two numbers, and for each number in the order of points; title -> SVG."""
    numbers = axes(search)
    pairs = [*combinations(numbers, 2), *((Axis(None), one) for one in numbers)]
    drawn = {f"{y.short} against {x.short}": _drawing(search, x, y, i) for i, (x, y) in enumerate(pairs)}
    return {title: svg for title, svg in drawn.items() if svg}


def _drawing(search: Search, x: Axis, y: Axis, index: int) -> str:
    """One drawing; empty when no point has both numbers."""
    points = [(point, a, b) for point in entries(search, "points") if (a := x.of(point)) is not None
              and (b := y.of(point)) is not None]  # fmt: skip
    if not points:
        return ""
    across = _Scale.of([a for _, a, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _Scale.of([b for _, _, b in points], _HEIGHT - _BOTTOM, _TOP)
    places = {int(point["number"]): (across.at(a), up.at(b)) for point, a, b in points}
    line = "" if x.name is None else _front_line(points, x, y, places)
    marks = "".join(_mark(search, point, places[int(point["number"])]) for point, _, _ in points)
    title = f"{y.short} against {x.short}, {len(points)} points"
    return (
        f'<svg role="img" aria-labelledby="pareto{index}" viewBox="0 0 {_WIDTH} {_HEIGHT}" data-axes="{index}">'
        f'<title id="pareto{index}">{escape(title)}</title>'
        f"{_grid(x, across, y, up)}{_limits(x, across, y, up)}{_titles(x, y)}{line}{marks}</svg>"
    )


def _grid(x: Axis, across: _Scale, y: Axis, up: _Scale) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    lines = [
        f'<path class="grid" d="M{across.at(tick):.1f} {_TOP}V{bottom}"/>'
        f'<text x="{across.at(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{x.said(tick)}</text>'
        for tick in across.ticks
    ]
    lines += [
        f'<path class="grid" d="M{_LEFT} {up.at(tick):.1f}H{right}"/>'
        f'<text x="{_LEFT - 8}" y="{up.at(tick) + 4:.1f}" text-anchor="end">{y.said(tick)}</text>'
        for tick in up.ticks
    ]
    return "".join(lines)


def _limits(x: Axis, across: _Scale, y: Axis, up: _Scale) -> str:
    """Lines where the goals end, if that is in the picture."""
    drawn = ""
    if x.limit is not None and across.low < x.limit < across.high:
        drawn += f'<path class="limit" d="M{across.at(x.limit):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
    if y.limit is not None and up.low < y.limit < up.high:
        drawn += f'<path class="limit" d="M{_LEFT} {up.at(y.limit):.1f}H{_WIDTH - _RIGHT}"/>'
    return drawn


def _titles(x: Axis, y: Axis) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f'{escape(x.title)}</text><text class="axis" x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">{escape(y.title)}</text>'
    )


def _front_line(
    points: Sequence[tuple[Point, float, float]], x: Axis, y: Axis, places: Mapping[int, tuple[float, float]]
) -> str:
    """Steps along the points that none is better than in both numbers."""
    signs = [-1 if axis.better == "higher" else 1 for axis in (x, y)]
    best, front = math.inf, []
    for point, _, b in sorted(points, key=lambda found: (signs[0] * found[1], signs[1] * found[2])):
        if signs[1] * b < best and point.get("state") == "complete":
            best = signs[1] * b
            front.append(places[int(point["number"])])
    if len(front) < 2:
        return ""
    steps = "".join(f"H{to[0]:.1f}V{to[1]:.1f}" for to in front[1:])
    return f'<path class="front" d="M{front[0][0]:.1f} {front[0][1]:.1f}{steps}"/>'


def _mark(search: Search, point: Point, place: tuple[float, float]) -> str:
    """A point; its title says all of it."""
    index = int(point["number"])
    is_chosen, kind = index == search.get("chosen"), kind_of(search, point)
    return (
        f'<circle class="{kind}{" chosen" if is_chosen else ""}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" '
        f'r="{7 if is_chosen else 5}" data-point="{index}"><title>{escape(described(point))}</title></circle>'
    )


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
    words = "chosen" if point.get("number") == search.get("chosen") else OUTCOMES[kind_of(search, point)]
    return ": ".join(filter(None, (words, plain(point.get("reason") or "").partition("\n")[0])))


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
