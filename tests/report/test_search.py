"""The search in a report: all points in a table and in pictures, and both alive in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from coldpress.report.page import page
from tests.report.test_page import Document

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def search_report(**changes):
    """A search of six points: two on the front, one that misses a goal, one dropped, one failed, one dominated."""
    numbers = [(10.0, 4e6), (6.0, 8e6), (12.0, 9e6), (5.0, 2e6)]
    points = [
        {"number": i, "state": "complete", "parameters": {"crush.bits": i, "dial.mode": "plain"},
         "passes": [], "numbers": {"latency.median_ms": ms, "size.model_bytes": size}, "meets_goals": i != 3,
         "reason": "", "traceback": "", "seconds": 1.5 + i} for i, (ms, size) in enumerate(numbers)
    ]  # fmt: skip
    points.append({**points[0], "number": 4, "state": "dropped", "numbers": {"size.model_bytes": 4e7},
                   "meets_goals": False, "reason": "size.model_bytes 40 MB is above the limit 10 MB"})  # fmt: skip
    points.append({**points[0], "number": 5, "state": "failed", "numbers": {}, "meets_goals": False,
                   "reason": "RuntimeError: it broke", "traceback": "Traceback: here"})  # fmt: skip
    objectives = [
        {"number": "latency.median_ms", "better": "lower", "unit": "ms", "priority": 1, "limit": 11.0, "goal": {}},
        {"number": "size.model_bytes", "better": "lower", "unit": "bytes", "priority": 2, "limit": 1e7,
         "goal": {"threshold": 1e7}},
    ]  # fmt: skip
    found = {
        "sampler": "tpe", "order": "joint", "seed": 0, "stopped": "6 points were tried", "seconds": 12.5, "size": 24,
        "objectives": objectives, "source": {"latency.median_ms": 20.0}, "points": points, "front": [0, 1, 3],
        "chosen": 1, "meets_goals": True, "why": "Of 3 points that meet all goals, point 1 is best.",
        "kept": {"0": "candidates/0"},
    }  # fmt: skip
    return {**found, **changes}


@pytest.fixture
def html(make_report):
    return page(make_report(search=search_report()))


def test_every_point_has_a_row_and_those_with_numbers_a_mark(html):
    document = Document(html)
    rows = [attrs for tag, attrs in document.tags if tag == "tr" and "data-point" in attrs]
    assert [row["data-point"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    marks = [attrs for tag, attrs in document.tags if tag == "circle" and "data-point" in attrs]
    one_of_each = {attrs["data-point"]: attrs["class"] for attrs in marks}
    assert one_of_each == {"0": "best", "1": "best chosen", "2": "meets", "3": "misses", "4": "dropped"}
    for words in ("Of 3 points", "RuntimeError: it broke", "Traceback: here", "40 MB is above", "kept in candidates/0",
                  "6 of 24 points", "threshold 10000000"):  # fmt: skip
        assert words in document.text, words


def test_marks_lie_where_the_axes_say(html):
    first = html[html.index('<svg role="img" aria-labelledby="pareto0"') :].partition("</svg>")[0]
    at = {
        int(i): (float(x), float(y))
        for x, y, i in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="\d" data-point="(\d)"', first)
    }
    assert at[3][0] < at[1][0] < at[0][0] < at[2][0], "fast ones to the left"
    assert at[3][1] > at[0][1] > at[1][1] > at[2][1], "small ones at the bottom"
    assert (at[0][0] - at[1][0]) / (at[2][0] - at[1][0]) == pytest.approx(4 / 6, abs=0.01)


def test_only_the_scripts_own_hash_may_run(html):
    document = Document(html)
    policies = [attrs["content"] for tag, attrs in document.tags if attrs.get("http-equiv")]
    assert "script-src 'sha256-" in policies[0] and "unsafe-inline'; script" not in policies[0]
    assert [tag for tag, _ in document.tags].count("script") == 1
    assert not [attrs for _, attrs in document.tags if {"src", "href", "onclick"} & set(attrs)]


def test_everything_from_a_search_is_escaped(make_report, hostile):
    points = search_report()["points"]
    points[0] |= {"parameters": {hostile: hostile}, "reason": hostile, "traceback": hostile}
    objectives = [{"number": "latency.median_ms", "better": hostile, "unit": hostile, "goal": {hostile: hostile}}]
    found = search_report(points=points, objectives=objectives, why=hostile, stopped=hostile, sampler=hostile)
    html = page(make_report(search=found, answers=None))
    assert "<b>" not in html and html.count("<script") == 1
    Document(html)


def test_a_search_with_one_number_shows_it_in_the_order_of_points(make_report):
    found = search_report(objectives=search_report()["objectives"][:1])
    assert "latency.median_ms against order, 4 points" in Document(page(make_report(search=found))).text


def browser(html: str, folder: Path) -> Document:
    """The page as a browser has it after its scripts ran."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    done = subprocess.run(
        [program, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def classes(dom: str, pattern: str) -> list[str]:
    return [tag for tag in re.findall(r"<(?:tr|circle|svg|html|button)[^>]*>", dom) if re.search(pattern, tag)]


@pytest.mark.full
def test_the_page_is_alive_in_a_browser(html, tmp_path):
    dom = browser(html, tmp_path)
    assert classes(dom, r"<html[^>]*live"), "the script ran under the page's own policy"
    shown = classes(dom, r"<svg[^>]*data-axes")
    assert len(shown) == 3 and [("display: none" in one) for one in shown] == [False, True, True]


@pytest.mark.full
def test_choosing_axes_pointing_clicking_and_sorting_in_a_browser(html, tmp_path):
    acts = """<script>
      const axes = document.getElementById("axes");
      axes.value = "1"; axes.dispatchEvent(new Event("change"));
      const mark = document.querySelector('svg[data-axes="1"] circle[data-point="2"]');
      mark.dispatchEvent(new Event("pointerenter"));
      mark.dispatchEvent(new Event("click"));
      document.querySelector('button[data-column="3"]').click();
    </script></body>"""
    tried = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", html).replace("</body>", acts)
    dom = browser(tried, tmp_path)
    shown = classes(dom, r"<svg[^>]*data-axes")
    assert [("display: none" in one) for one in shown] == [True, False, True]
    assert len(classes(dom, r"<tr[^>]*picked")) == 1 and 'data-point="2"' in classes(dom, r"<tr[^>]*picked")[0]
    assert len(classes(dom, r"<circle[^>]*near")) == 3
    assert "point 2: crush.bits=2, dial.mode=plain; latency.median_ms 12" in dom.partition('id="hovered"')[2][:300]
    order = re.findall(r'<tr data-point="(\d)"', dom)
    assert order == ["3", "0", "1", "2", "4", "5"], "by size, what has none last"
