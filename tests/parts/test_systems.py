"""What every system promises: jobs are done there and their results are in the store, or it is said what to do."""

from __future__ import annotations

import json

import pytest

from coldpress import parts
from coldpress.cli import main
from coldpress.jobs.job import Job
from coldpress.jobs.store import Store
from coldpress.target import Target
from tests.parts.conftest import contents
from tests.parts.examples import REFUSED_SYSTEMS, SYSTEMS


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_jobs_are_done_and_their_results_kept(name, named, tmp_path):
    model, store = named("dense"), Store(tmp_path / "cache")
    before = contents(model.path)
    target = Target(threads=1)
    jobs = [
        Job("pass", "onnx_opset_conversion", {"target_opset": 21}, model, target),
        Job("metric", "size", {}, model, target),
        Job("metric", "latency", {"warmup": 1, "repeats": 2}, model, target),
    ]
    done = dict(enumerate(parts.find("systems", name)(**SYSTEMS[name]).map(jobs, store)))
    assert sorted(job.key for job, _ in done.values()) == sorted(job.key for job in jobs)
    for job, result in done.values():
        assert store.get(job.key) is not None
        assert (result.model is None) == (job.kind == "metric") and bool(result.numbers) == (job.kind == "metric")
    assert contents(model.path) == before


@pytest.mark.parametrize("name", sorted(REFUSED_SYSTEMS))
def test_a_request_that_cannot_be_ends_with_exit_code_2(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    system = {"type": name, "parameters": dict(REFUSED_SYSTEMS[name])}
    (tmp_path / "w.json").write_text(json.dumps({"model": "m", "passes": ["press"], "system": system}))
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--config", "w.json", "--dry_run"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert "system.parameters" in said and "hint: " in said
