"""A system of another distribution gets the jobs of a run, and nothing is done on this machine's own account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import coldpress
from coldpress.errors import ColdpressError
from coldpress.jobs.store import Store
from coldpress.parts import find
from coldpress.runs.engine import Report
from coldpress.runs.evaluation import evaluate
from coldpress.workflow import Measure, Place, Step, Verify, Workflow
from coldpress.workflow.file import load_workflow
from tests.onnx_models import dense, saved

pytestmark = pytest.mark.usefixtures("lab_parts")
SECOND = Place("second")


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """``sent()``: the parts whose jobs the second interpreter was sent; a job that is done locally fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a job was done on this machine")

    monkeypatch.setattr(find("systems", "local"), "map", refuse)
    monkeypatch.setenv("LAB_LOG", str(tmp_path / "lab.log"))
    lines = lambda: (tmp_path / "lab.log").read_text().splitlines()  # noqa: E731
    return lambda: [line.removeprefix("sent ") for line in lines() if line.startswith("sent ")]


def run(tmp_path: Path, *steps: Step, **changes: object) -> Report:
    source = tmp_path / "source"
    if not source.exists():
        saved(dense(), source)
    workflow = Workflow(str(source), steps, system=SECOND, metrics=(Measure("size"),), verify=Verify(), **changes)  # type: ignore[arg-type]
    return coldpress.run(workflow, cache_dir=tmp_path / "cache")


def test_passes_verification_and_metrics_are_done_there(tmp_path, sent):
    report = run(tmp_path, Step("spoil", {"share": 0.05}))
    assert report.data["verdict"] == "verified"
    assert report.data["quality"]["relative"] == pytest.approx(0.05, rel=1e-3)
    assert sent() == ["spoil", "graph_divergence", "size"]
    run(tmp_path, Step("spoil", {"share": 0.05}))
    assert len(sent()) == 3, "what the store knows is not sent"


def test_a_failure_there_ends_the_run_with_its_own_words(tmp_path, sent):
    with pytest.raises(ColdpressError, match="what spoil wrote cannot be used"):
        run(tmp_path, Step("spoil", {"breaks": "open"}))
    assert sent() == ["spoil", "graph_divergence"]


def test_models_are_evaluated_there(tmp_path, sent):
    models = [str(saved(dense(), tmp_path / name)) for name in ("one", "two")]
    rows = evaluate(models, ["size"], store=Store(tmp_path / "cache"), system=SECOND)
    assert rows[0]["size"] == rows[1]["size"] and sent() == ["size"], "equal models are measured once"


def test_a_search_asks_for_as_many_points_as_the_system_has_workers_and_is_replayed_from_that(tmp_path, sent):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/model.onnx").write_text("not a graph")
    workflow = load_workflow(
        {
            "model": str(tmp_path / "source"),
            "passes": [
                {"type": "dial", "parameters": {"x": {"range": [0.0, 1.0]}, "mode": {"choice": ["plain", "broken"]}}},
                {"type": "crush", "parameters": {"bits": {"choice": [8, 4, 2]}}},
            ],
            "metrics": [{"type": "weight", "goals": {"mass": {"priority": 1}}}],
            "search": {"sampler": "tpe", "sampler_parameters": {"startup": 2}, "trials": 5},
            "system": "second",
        }
    )
    whole = points(coldpress.run(workflow, cache_dir=tmp_path / "cache"))
    [journal] = (tmp_path / "cache/kept").glob("search-*/optuna.journal")
    lines = journal.read_text().splitlines(keepends=True)
    for lost in (1, 3):  # as if it had been killed before the last points that were finished were written down
        journal.write_text("".join(lines[:-lost]))
        assert points(coldpress.run(workflow, cache_dir=tmp_path / "cache")) == whole
    alone = replace(workflow, system=Place("second", {"workers": 1}))
    one = coldpress.run(alone, cache_dir=tmp_path / "cache")
    assert points(one)[:2] == whole[:2] and points(one) != whole
    assert len(list((tmp_path / "cache/kept").glob("search-*"))) == 2, "each has a history of its own"


def points(report: Report) -> list[dict[str, object]]:
    found = report.data["search"]["points"]
    return [{name: point[name] for name in ("number", "parameters", "state", "numbers")} for point in found]
