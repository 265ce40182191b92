from __future__ import annotations

import io
import re

from rich.console import Console

from coldpress.parts import Value
from coldpress.report import remark_on_size
from coldpress.report.terminal import comparison, onward, points, summary
from tests.report.test_search import search_report

COLUMNS = {"perplexity": Value("lower"), "decode": Value("higher", "tokens/s"), "layers": Value("neither")}


def printed(renderable, terminal: bool = False, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=terminal, no_color=not terminal).print(renderable)
    return out.getvalue()


def test_summary_is_short_and_plain(make_report):
    text = printed(summary(make_report()))
    assert "\x1b" not in text
    assert len(text.splitlines()) < 16
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "538 MB" in lines["Model"] and "98.2 MB" in lines["Model"] and "5.48 times smaller" in lines["Model"]
    assert "20.91" in lines["Perplexity"] and "21.34" in lines["Perplexity"]
    assert "0.0312" in lines["KL divergence"] and "at most 0.1" in lines["KL divergence"]
    assert "\n\nVerified. KL divergence 0.0312" in text


def test_summary_of_an_empty_report_claims_nothing():
    text = printed(summary({}))
    assert "Not verified" in text and "not measured" in text


def test_summary_is_not_steered_by_the_report(make_report):
    text = printed(summary(make_report(reasons=["[red]markup[/red] \x1b[31mescape"])), terminal=False)
    assert "[red]markup[/red]" in text and "\x1b" not in text


def test_best_is_marked_only_beyond_the_spread():
    rows = [
        {
            "name": "int4",
            "perplexity": {"value": 21.3, "spread": 0.1},
            "decode": {"value": 120, "spread": 6},
            "layers": 30,
        },
        {
            "name": "int8",
            "perplexity": {"value": 20.9, "spread": 0.1},
            "decode": {"value": 115, "spread": 6},
            "layers": 31,
        },
    ]
    text = printed(comparison(rows, COLUMNS))
    assert "20.9 ± 0.100 *" in text
    assert "120 ± 6 *" not in text and "115 ± 6 *" not in text
    assert "31 *" not in text


def test_numbers_without_a_spread_are_exact_and_ties_are_not_marked():
    rows = [{"name": "a", "perplexity": 2.0, "decode": 5}, {"name": "b", "perplexity": 3.0, "decode": 5}]
    text = printed(comparison(rows, COLUMNS))
    assert "2 *" in text and "5 *" not in text


def test_nothing_is_marked_without_a_rival():
    assert "*" not in printed(comparison([{"name": "a", "perplexity": 2.0}, {"name": "b"}], COLUMNS))


def test_the_longer_list_goes_down():
    columns = {"size": Value("lower", "MB"), "kl": Value("lower")}
    many = [{"name": f"model{i}", "size": i, "kl": i} for i in range(5)]
    assert len(printed(comparison(many, columns)).splitlines()) >= 6
    few = printed(comparison(many[:1], columns)).splitlines()
    assert few[0].split() == ["model0"] and few[1].startswith("size [MB]")


def test_titles_are_words_with_their_unit():
    columns = {"exact_match": Value("higher"), "first_token_ms_p95": Value("lower", "ms")}
    text = printed(comparison([{"name": "a"}, {"name": "b"}], columns))
    assert "exact match" in text and "first token p95 [ms]" in text


def test_what_comes_next_is_told_with_places_times_and_what_would_be_better(make_report):
    timings = [
        {"step": "quantize", "seconds": 19.84},
        {"step": "verify", "seconds": 3.94},
        {"step": "x", "seconds": 0.0},
    ]
    report = make_report(format="onnx", speed={"decode_tokens_per_second": 100}, timings=timings)
    lines = printed(onward(report, "models/my out", 30.2, "--algorithm best would leave less")).splitlines()
    assert lines[1].split("   ")[0] == "models/my out" and "models/my out/report.html" in lines[2]
    assert lines[3].startswith("coldpress chat 'models/my out'")
    assert lines[4] == "30.2 s in all: quantize 19.8 s, verify 3.94 s"
    assert lines[5] == "--algorithm best would leave less"
    quick = printed(onward(report, "out", 2.5))
    assert "2.50 s in all; from the cache, at least in part: quantize 19.8 s" in quick
    again = printed(onward({**report, "format": "hf"}, "q", 0.1, is_new=False))
    assert "coldpress auto-opt q" in again and "nothing was done" in again


def test_why_a_result_is_larger_than_its_source_is_told():
    layers = [{"role": "linear", "bytes": 60_000_000}]
    report = {
        "source": {"bytes": 98e6, "format": "gguf"},
        "size": {"model_bytes": 182e6},
        "layers": layers,
        "format": "hf",
    }
    assert remark_on_size(report) == (
        "Larger than its source: 122 MB of it are floats, the token embedding and the head among them; its source was"
        " packed already."
    )
    assert remark_on_size({**report, "source": {"bytes": 500e6}}) is None
    assert remark_on_size({}) is None


def test_a_search_is_a_table_of_points_in_words_and_why_one_was_chosen(make_report):
    text = printed(points(make_report(search=search_report(ranking=[1, 0, 2]))))
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0].split() == ["point", "settings", "median", "size"]
    assert lines[1].split() == ["1", "crush.bits=1", "dial.mode=plain", "6", "ms", "8", "MB", "chosen"]
    assert lines[2].startswith("    0") and "on the front" in lines[2]
    assert "failed: RuntimeError" in text and "dropped after" in text
    assert "Of 3 points that meet all goals, point 1 is best." in lines
    assert points(make_report()) is None


def test_what_a_metric_measured_is_in_the_table_instead_of_speed_that_was_not(make_report):
    described = {"latency_p50_ms": {"better": "lower", "unit": "ms"}, "throughput": {"better": "higher", "unit": ""}}
    report = make_report(
        directions={"latency": described}, latency={"latency_p50_ms": 12.5, "throughput": 80.0}, speed=None
    )
    text = printed(summary(report))
    assert re.search(r"Latency p50 +12\.5 ms", text) and re.search(r"Throughput +80", text)
    assert "Speed" not in text
    goal = {"number": "latency.throughput", "met": True}
    text = printed(summary({**report, "goals": [goal]}))
    assert "Throughput" in text and "Latency p50" not in text
