"""The search in a report: all points in a table and in charts."""

from __future__ import annotations

import json

import pytest

from coldpress.report.page import page
from tests.report.conftest import search_report
from tests.report.test_page import Document


@pytest.fixture
def html(make_report):
    return page(make_report(search=search_report()))


def marks(chart: dict) -> dict[int, dict]:
    """The points of a chart by their number."""
    return {one["point"]: one for one in chart["layer"][-1]["data"]["values"]}


def test_every_point_has_a_row_and_those_with_both_numbers_a_mark(html):
    document = Document(html)
    rows = [attrs for tag, attrs in document.tags if tag == "tr" and "data-point" in attrs]
    assert [row["data-point"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    drawn = marks(document.chart("latency median against size, 4 points"))
    assert {point: (one["x"], one["y"], one["outcome"]) for point, one in drawn.items()} == {
        0: (4, 10, "on the front"), 1: (8, 6, "chosen"), 2: (9, 12, "meets all goals"), 3: (2, 5, "misses a goal")
    }  # fmt: skip
    for words in ("Of 3 points", "RuntimeError: it broke", "Traceback: here", "40 MB is above", "kept in candidates/0",
                  "6 of 24 points", "threshold 10000000"):  # fmt: skip
        assert words in document.text, words


def test_the_first_chart_is_the_trade_off_with_the_limits_of_the_goals(html):
    first = next(chart for chart in Document(html).charts if "interpolate" in json.dumps(chart))
    titles = [first["layer"][-1]["encoding"][channel]["axis"]["title"] for channel in "xy"]
    assert titles == ["size [MB], lower is better", "latency median [ms], lower is better"]
    limits = [next(iter(one["layer"][0]["encoding"].items())) for one in first["layer"] if "layer" in one]
    assert [(channel, place["datum"]) for channel, place in limits] == [("x", 10), ("y", 11)]


def test_the_front_goes_along_points_that_none_is_better_than(make_report):
    points = search_report()["points"]
    points[3]["numbers"] = {"latency.median_ms": 20.0, "size.model_bytes": 2e6}
    first = Document(page(make_report(search=search_report(points=points)))).chart("latency median against size")
    [line] = [layer for layer in first["layer"] if layer.get("mark", {}).get("type") == "line"]
    assert [(one["x"], one["y"]) for one in line["data"]["values"]] == [(2, 20), (4, 10), (8, 6)]


def test_everything_from_a_search_is_escaped(make_report, hostile):
    points = search_report()["points"]
    points[0] |= {"parameters": {hostile: hostile}, "reason": hostile, "traceback": hostile}
    objectives = [{"number": "latency.median_ms", "better": hostile, "unit": hostile, "goal": {hostile: hostile}}]
    found = search_report(points=points, objectives=objectives, why=hostile, stopped=hostile, sampler=hostile)
    html = page(make_report(search=found, answers=None))
    assert "<b>" not in html.partition("<script>")[0] and html.count("<script") == 2
    Document(html)


def test_a_search_with_one_number_shows_it_in_the_order_of_points(make_report):
    found = search_report(objectives=search_report()["objectives"][:1])
    assert len(marks(Document(page(make_report(search=found))).chart("latency median against order"))) == 4
