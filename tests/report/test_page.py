from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from coldpress.report.heat_map import place
from coldpress.report.page import page

VOID = {"meta", "br", "wbr", "rect", "link", "img", "hr", "input"}


class Document(HTMLParser):
    """Reads a page strictly: every element is closed in order; ids are unique; texts and attributes are kept."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append(data)
        self.inside.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.inside if where == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.mark.parametrize("changes", [{}, {"verdict": "unverified", "quality": None}, {"layers": None, "answers": None}])
def test_page_is_well_formed(make_report, changes):
    document = Document(page(make_report(**changes)))
    ids = [attrs["id"] for _, attrs in document.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in document.tags].count("h1") == 1


def test_empty_report_says_what_was_not_measured():
    document = Document(page({}))
    assert "Not verified" in document.text
    assert document.text.count("not measured") >= 8


def test_page_loads_nothing_and_runs_nothing(make_report):
    html = page(make_report())
    document = Document(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in document.tags}
    assert not [attrs for _, attrs in document.tags if {"src", "href", "onclick"} & set(attrs)]
    assert "url(" not in html and "@import" not in html


def test_everything_from_the_report_is_escaped(make_report, hostile):
    everywhere = make_report(
        reasons=[hostile],
        source={"name": hostile, "architecture": hostile, "origin": hostile, "notes": [hostile]},
        target={"device": hostile, "provider": hostile},
        passes=[{"name": hostile, "parameters": {hostile: hostile}}],
        tolerance={hostile: hostile},
        answers=[{"prompt": hostile, "answer": hostile}],
        layers=[{"name": f"a.0.{hostile}", "bits": hostile, "block_size": hostile, "algorithm": hostile,
                 "relative_error": 0.1}, {"name": hostile, "bits": hostile, "relative_error": 0.1}],
        timings=[{"step": hostile, "seconds": 1.0}],
        machine={hostile: hostile},
        versions={hostile: hostile},
        command=hostile,
        created=hostile,
    )  # fmt: skip
    html = page(everywhere)
    assert "<script" not in html and "<b>" not in html
    assert "<script>alert('x')</script>" in Document(html).text


def test_all_numbers_appear(make_report):
    text = Document(page(make_report())).text
    expected = "538 MB|98.2 MB|102 MB|5.84|20.91|21.34|+2.1 %|0.0312|0.271|93.2 %|90.4 %|2,048 tokens|412 ms"
    expected += "|621 tokens/s|125 tokens/s|118 tokens/s|286 MB|1.70 s|4.20 s|11.9 s|18.4 s in all|at most 0.1"
    expected += "|at least 80 %|perplexity_ratio 1.1|95.0 % the same|81.0 % the same|exit code 0|135 million"
    assert not [value for value in expected.split("|") if value not in text]


def test_every_layer_has_a_cell_and_a_row(make_report):
    report = make_report()
    document = Document(page(report))
    titles = document.of("title")
    for layer in report["layers"]:
        assert any(title.startswith(f"{layer['name']}, error ") for title in titles), layer["name"]
    rows = [attrs for tag, attrs in document.tags if tag == "rect" and (attrs.get("class") or "").startswith("h")]
    assert len(rows) == len(report["layers"]) + 7


def test_colours_follow_the_error(make_report):
    layers = [{"name": f"layers.{i}.proj", "relative_error": 0.01 * (i + 1)} for i in range(10)]
    layers += [{"name": "layers.10.proj", "exact": True}, {"name": "layers.11.proj"}]
    document = Document(page(make_report(layers=layers)))
    classes = [
        attrs.get("class") for tag, attrs in document.tags if tag == "rect" and attrs.get("width") in ("42", "41.0")
    ]
    steps = classes[:10]
    assert steps == sorted(steps) and steps[0] == "h0" and steps[-1] == "h6"
    assert classes[10:12] == ["exact", "unmeasured"]


def test_experts_share_a_cell_that_shows_the_worst(make_report):
    layers = [{"name": f"model.layers.0.mlp.experts.{i}.up_proj", "relative_error": 0.01 * i} for i in range(1, 5)]
    titles = Document(page(make_report(layers=layers))).of("title")
    assert any("experts.4.up_proj, error 0.0400" in title and "worst of 4" in title for title in titles)


def test_tokens_by_expert(make_report):
    tokens = {0: 40, 1: 0, 2: 7, 3: 25}
    watched = [
        {
            "name": f"model.layers.{i}.mlp.experts.{place}.up_proj",
            "bits": 4,
            "tokens": count * (1 + i),
            "output_error": None,
        }
        for i in range(2)
        for place, count in tokens.items()
    ]
    document = Document(page(make_report(calibration={"layers": watched, "tokens": 64, "windows": 2, "text": "ours"})))
    assert document.of("title").count("expert 1: 0 tokens") == 2
    assert "expert 0: 80 tokens" in document.of("title")
    assert "Fewest Median Most Without any Each" in document.text
    assert "0 16 40 1" in document.text and "0 32 80 1" in document.text
    strip = [attrs for tag, attrs in document.tags if tag == "svg" and attrs.get("aria-label") == "Tokens of 4 experts"]
    assert len(strip) == 2


def test_a_model_without_experts_has_no_table_of_them(make_report):
    watched = [{"name": "model.layers.0.mlp.up_proj", "bits": 4, "tokens": 64, "output_error": 0.1}]
    assert "by expert" not in page(
        make_report(calibration={"layers": watched, "tokens": 64, "windows": 2, "text": "ours"})
    )


def test_encoder_and_decoder_have_a_map_each(make_report):
    layers = [
        {"name": f"{side}.layers.{i}.fc1", "relative_error": 0.1} for side in ("encoder", "decoder") for i in (0, 1)
    ]
    titles = Document(page(make_report(layers=layers))).of("title")
    assert "Error by layer in encoder.layers" in titles and "Error by layer in decoder.layers" in titles


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.mlp.up_proj.weight", ("model.layers", 3, "mlp.up_proj")),
        ("h.11.attn.c_attn", ("h", 11, "attn.c_attn")),
        ("lm_head", None),
        ("classifier.1", None),
    ],
)
def test_place_of_a_layer(name, expected):
    assert place(name) == expected


@pytest.mark.parametrize(
    ("verdict", "title"),
    [("verified", "Verified"), ("worse than tolerance", "Worse than tolerance"), ("unverified", "Not verified"),
     ("Verified!", "Not verified"), (None, "Not verified")],
)  # fmt: skip
def test_only_the_word_verified_reads_as_verified(make_report, verdict, title):
    document = Document(page(make_report(verdict=verdict)))
    assert document.of("h2")[0] == title
    assert document.of("title")[0].endswith(f": {title}")


def test_missing_and_infinite_numbers_are_not_shown_as_numbers(make_report):
    text = Document(
        page(make_report(quality={"perplexity": float("nan"), "kl": float("inf"), "top1_agreement": True}))
    ).text
    assert "nan" not in text.split() and "inf" not in text.split()


@pytest.mark.full
@pytest.mark.parametrize(("width", "scheme"), [(1100, 1), (390, 1), (390, 0)])
def test_chromium_draws_the_page(make_report, tmp_path: Path, width, scheme):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    file, picture = tmp_path / "report.html", tmp_path / "report.png"
    file.write_text(page(make_report()), encoding="utf-8")
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    switches += f"--disable-component-update --disable-sync --blink-settings=preferredColorScheme={scheme}"
    command = [chromium, *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"]
    subprocess.run([*command, f"--screenshot={picture}", file.as_uri()], check=True, capture_output=True, timeout=120)
    assert picture.stat().st_size > 20_000
