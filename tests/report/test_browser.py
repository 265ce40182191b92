"""Pages in a real browser: every chart has its axes, nothing is cut off on a phone, and what is clicked answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

from coldpress.report.page import page
from tests.report.conftest import search_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOSS = [[step, 3 - step / 100] for step in range(1, 101)]
#: changes of the sample report -> the kinds of reports that there are
KINDS = {
    "pressed": {},
    "searched": {"search": search_report()},
    "trained": {"format": "adapter", "tuning": {"method": "lora", "loss": LOSS, "held_out": {"loss_before": 3.0, "loss_after": 2.0}}},
    "mixture": {
        "layers": [{"name": f"model.layers.{i}.mlp.experts.{k}.gate_up_proj.with_a_long_name", "relative_error": 0.1}
                   for i in range(4) for k in range(8)],
        "calibration": {"tokens": 64, "windows": 2, "text": "ours", "layers": [
            {"name": f"model.layers.{i}.mlp.experts.{k}.up_proj", "bits": 4, "tokens": i + k, "output_error": 0.1}
            for i in range(4) for k in range(8)]},
    },
    "not verified": {"verdict": "unverified", "quality": None, "answers": None, "speed": None},
}  # fmt: skip
#: what a chart says of itself once it is drawn: the ticks of its axes, and their titles
LOOK = """<script>
  const told = () => ({
    inner: innerWidth, scroll: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("main *")].filter((one) => !one.closest(".scroll, svg, details:not([open])")
      && one.getBoundingClientRect().right > innerWidth + 1).map((one) => `${one.tagName} ${one.textContent.slice(0, 40)}`),
    cut: [...document.querySelectorAll(".chart svg text")].filter((one) => { const box = one.getBoundingClientRect();
      return box.width && (box.right > innerWidth + 1 || box.left < -1); }).map((one) => one.textContent),
    charts: [...document.querySelectorAll("[data-spec]")].map((one) => ({ name: one.ariaLabel,
      drawn: one.classList.contains("drawn"), folded: Boolean(one.closest("details:not([open])")),
      ticks: one.querySelectorAll(".role-axis-label text").length, titles: one.querySelectorAll(".role-axis-title text").length })),
  });
  setTimeout(() => { ACTS; document.title = JSON.stringify(told()); parent.postMessage(document.title, "*"); }, 3000);
</script></body>"""


def seen(html: str, folder: Path, width: int, acts: str = "") -> tuple[dict, str]:
    """What a page tells of itself in a frame of ``width``, and the whole of it afterwards."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    tried = re.sub(r"script-src [^\"]*", "script-src 'unsafe-inline'", html)
    head, _, _ = tried.rpartition("</body>")
    file = folder / "page.html"
    # a window may not be as narrow as a phone, a frame may
    frame = f'<iframe style="width:{width}px;height:6000px;border:0" srcdoc="{escape(head + LOOK.replace("ACTS", acts))}"></iframe>'
    file.write_text(f'<meta charset="utf-8">{frame}<script>onmessage = (e) => {{ document.body.dataset.told = e.data;'
                    ' document.body.dataset.dom = document.querySelector("iframe").contentDocument.body.innerHTML; }</script>')  # fmt: skip
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=8000",
             f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    done = subprocess.run(
        [program, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    told = re.search(r'data-told="([^"]*)"', done.stdout)
    assert told, "the page did not run"
    dom = re.search(r'data-dom="([^"]*)"', done.stdout)
    return json.loads(unescape(told.group(1))), unescape(dom.group(1)) if dom else ""


@pytest.mark.full
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_off_and_every_chart_has_its_axes(make_report, tmp_path, kind, width):
    told, _ = seen(page(make_report(**KINDS[kind])), tmp_path, width)
    assert not told["wide"] and not told["cut"]
    assert told["inner"] == width and told["scroll"] <= width
    for chart in told["charts"]:
        assert chart["drawn"] is not chart["folded"], chart
        assert chart["folded"] or (chart["ticks"] >= 2 and chart["titles"] >= 1), chart


@pytest.mark.full
def test_the_page_is_alive_under_its_own_policy(make_report, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page(make_report()), encoding="utf-8")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=8000",
        f"--user-data-dir={tmp_path / 'p'}",
    ]
    done = subprocess.run(
        [program, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    dom = done.stdout.partition("<script>")[0]
    assert len(re.findall(r'class="chart[^"]* drawn"', dom)) == dom.count("data-spec=") == dom.count("<svg") > 0


@pytest.mark.full
def test_a_click_finds_the_row_of_a_point_and_a_column_sorts_the_table(make_report, tmp_path):
    acts = """
      const mark = [...document.querySelectorAll(".mark-symbol path")].find((one) => (one.ariaLabel || "").includes("point 2:"));
      mark.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      document.querySelectorAll("#points thead button")[3].click();"""
    _, dom = seen(page(make_report(search=search_report())), tmp_path, 1200, acts)
    assert re.findall(r'<tr data-point="(\d)" class="picked"', dom) == ["2"]
    assert re.findall(r'<tr data-point="(\d)"', dom) == ["3", "0", "1", "2", "4", "5"], "by size, what has none last"
