from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from coldpress.report.heat_map import place
from coldpress.report.page import page
from tests.report.conftest import search_report

VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}


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
        if self.open and self.open[-1] in ("script", "style"):
            self.texts.pop()

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.inside if where == tag]

    @property
    def charts(self) -> list[dict]:
        """The specifications of the charts."""
        return [json.loads(attrs["data-spec"]) for _, attrs in self.tags if attrs.get("data-spec")]

    def chart(self, title: str) -> dict:
        """The one whose title begins so."""
        [found] = [
            json.loads(attrs["data-spec"])
            for _, attrs in self.tags
            if attrs.get("data-spec") and attrs["aria-label"].startswith(title)
        ]
        return found

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
    assert document.text.count("not measured") >= 6


def test_page_loads_nothing_and_runs_only_its_own_code(make_report):
    html = page(make_report())
    document = Document(html)
    assert not {"link", "img", "iframe"} & {tag for tag, _ in document.tags}
    assert not [attrs for _, attrs in document.tags if {"src", "href", "onclick"} & set(attrs)]
    [policy] = [attrs["content"] for _, attrs in document.tags if attrs.get("http-equiv")]
    allowed = set(re.search(r"script-src ([^;]*)", policy).group(1).split())
    hashes = {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in document.of("script")}
    assert allowed == {f"'sha256-{one}'" for one in hashes} and len(hashes) == 2


def test_a_page_without_charts_brings_no_library():
    assert "<script" not in page({}) and "script-src" not in page({})


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
    assert html.count("<script") == 2 and "<b>" not in html.partition("<script>")[0]
    assert "<script>alert('x')</script>" in Document(html).text


def test_all_numbers_appear(make_report):
    document = Document(page(make_report()))
    text = f"{document.text} {' '.join(attrs.get('aria-label') or '' for _, attrs in document.tags)}"
    expected = "538 MB|98.2 MB|102 MB|5.84|20.91|21.34|+2.1 %|0.0312|0.271|93.2 %|90.4 %|2,048 tokens|412 ms"
    expected += "|621 tokens/s|125 tokens/s|118 tokens/s|286 MB|1.70 s|4.20 s|11.9 s|18.4 s in all|at most 0.1"
    expected += "|at least 80 %|perplexity_ratio 1.1|95.0 % of its tokens|81.0 % of its tokens|exit code 0|135 million"
    assert not [value for value in expected.split("|") if value not in text]


def cells(chart: dict) -> list[dict]:
    """What the rectangles of a map stand for."""
    return [cell for layer in chart["layer"] if layer["mark"]["type"] == "rect" for cell in layer["data"]["values"]]


def test_every_layer_has_a_cell_and_a_row(make_report):
    report = make_report()
    document = Document(page(report))
    drawn = {cell["name"]: cell for cell in cells(document.chart("Error by layer"))}
    assert {name: cell["error"] for name, cell in drawn.items()} == {
        layer["name"]: layer["relative_error"] for layer in report["layers"]
    }
    assert all(f"{layer['name']} " in document.text.replace(". ", ".") for layer in report["layers"])


def test_rows_follow_the_network(make_report):
    rows = Document(page(make_report())).chart("Error by layer")["encoding"]["y"]["sort"]
    assert rows == ["embed_tokens", *map(str, range(30)), "lm_head"]


def test_what_is_exact_or_not_measured_has_no_colour(make_report):
    layers = [{"name": f"layers.{i}.proj", "relative_error": 0.01 * (i + 1)} for i in range(10)]
    layers += [{"name": "layers.10.proj", "exact": True}, {"name": "layers.11.proj"}]
    document = Document(page(make_report(layers=layers)))
    told = {cell["row"]: (cell["error"], cell["said"]) for cell in cells(document.chart("Error by layer"))}
    assert told["0"] == (0.01, "0.0100") and told["10"] == (None, "exact") and told["11"] == (None, "not measured")
    assert "A cell without a colour is exact or not measured." in document.text


def test_experts_share_a_cell_that_shows_the_worst(make_report):
    layers = [{"name": f"model.layers.0.mlp.experts.{i}.up_proj", "relative_error": 0.01 * i} for i in range(1, 5)]
    [cell] = cells(Document(page(make_report(layers=layers))).chart("Error by layer"))
    assert cell["name"].endswith("experts.4.up_proj") and cell["error"] == 0.04 and cell["of"] == 4


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
    drawn = document.chart("Calibration tokens of 8 experts")["data"]["values"]
    assert {(one["layer"], one["expert"]): one["tokens"] for one in drawn} == {
        (str(i), place): count * (1 + i) for i in range(2) for place, count in tokens.items()
    }
    assert "Fewest Median Most Without any" in document.text
    assert "0 16 40 1" in document.text and "0 32 80 1" in document.text


def test_a_model_without_experts_has_no_table_of_them(make_report):
    watched = [{"name": "model.layers.0.mlp.up_proj", "bits": 4, "tokens": 64, "output_error": 0.1}]
    assert "by expert" not in page(
        make_report(calibration={"layers": watched, "tokens": 64, "windows": 2, "text": "ours"})
    )


def test_encoder_and_decoder_have_a_map_each(make_report):
    layers = [
        {"name": f"{side}.layers.{i}.fc1", "relative_error": 0.1} for side in ("encoder", "decoder") for i in (0, 1)
    ]
    document = Document(page(make_report(layers=layers)))
    for side in ("encoder", "decoder"):
        assert [cell["row"] for cell in cells(document.chart(f"Error by layer in {side}.layers"))] == ["0", "1"]


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


def test_first_comes_what_was_made_and_what_it_costs(make_report):
    report = make_report(calibration={"layers": [{"name": "a"}], "tokens": 64})
    opening = Document(page(report)).text.partition("What it answers")[0]
    said = (
        "int4, calibrated: an ONNX model for the CPU|Verified|98.2 MB|18.3 % of the source's 538 MB|93.2 %|125 tokens/s"
    )
    said += "|of next tokens are what its source would say|about 93.4 words a second|the source was not timed"
    assert not [words for words in said.split("|") if words not in opening]


@pytest.mark.parametrize(("share", "mark"), [(0.9, "better than usual"), (0.75, "as usual"), (0.6, "worse than usual")])
def test_quality_has_a_mark_of_what_is_usual(make_report, share, mark):
    report = make_report()
    text = Document(page({**report, "quality": {**report["quality"], "top1_agreement": share}})).text
    assert f"{mark} usual for int4: 70.0 % to 83.0 %" in text


def test_answers_stand_beside_those_of_the_source_and_show_where_they_part(make_report):
    document = Document(page(make_report()))
    assert (
        "this model The capital of France is Paris. its source The capital of France is the city of Paris."
        in document.text
    )
    assert document.of("mark")[0] == "the city of "
    assert document.text.count("…") == 1, "an answer that is not known to its end says so"


def test_divergence_is_told_with_its_percentiles_and_their_errors(make_report):
    text = Document(page(make_report())).text
    for words in ("Mean 0.0312 ± 0.00210", "Median 0.00800 0.00720 to 0.00880", "99.9 % 1.13 1.02 to 1.24", "Most 2.31",
                  "93.2 % ± 0.6 %"):  # fmt: skip
        assert words in text, words


def test_loss_is_drawn_for_rows_trained_on_and_held_out(make_report):
    loss = [(1, 2.5), (2, 2.25), (3, 2.125)]
    tuning = {
        "method": "lora",
        "loss": loss,
        "held_out": {"rows": 4, "loss_before": 2.75, "loss_after": 2.0},
        "steps": 3,
    }
    tuning["settings"] = [["learning_rate", 0.0002], ["lr_scheduler_type", "linear"]]
    document = Document(page(make_report(format="adapter", tuning=tuning)))
    assert "Learning rate 0.0002 Lr scheduler type linear" in document.text
    chart = document.chart("Loss from step 1 to 3")
    trained, held_out = (layer["data"]["values"] for layer in chart["layer"])
    assert [(one["step"], one["loss"]) for one in trained] == loss
    assert [(one["step"], one["loss"]) for one in held_out] == [(0, 2.75), (3, 2.0)]


def test_charts_are_vega_lite(make_report):
    """Against the schema that Altair brings."""
    import altair

    tuning = {
        "method": "lora",
        "loss": [(1, 2.5), (2, 2.25)],
        "held_out": {"rows": 4, "loss_before": 2.75, "loss_after": 2},
    }
    watched = [
        {"name": f"model.layers.0.mlp.experts.{i}.up_proj", "bits": 4, "tokens": i, "output_error": 0.1}
        for i in range(3)
    ]
    found = make_report(search=search_report(), tuning=tuning, calibration={"layers": watched, "tokens": 3})
    charts = Document(page(found)).charts
    assert len(charts) == 9
    for chart in charts:
        altair.Chart.from_dict(chart)
