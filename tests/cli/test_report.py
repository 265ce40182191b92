"""Reports looked at again, without a run."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def outputs(tmp_path):
    for name, size, kl in (("small", 90e6, 0.08), ("large", 145e6, 0.004)):
        report = {
            "verdict": "verified" if name == "large" else "worse than tolerance",
            "source": {"name": "m", "bytes": 538e6},
            "size": {"model_bytes": size, "bits_per_weight": 8 * size / 134.5e6},
            "quality": {"kl": kl},
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    return tmp_path


def test_one_report_is_shown_as_after_its_run_and_several_side_by_side(run, outputs):
    one = run("report", "small")
    assert one.returncode == 0 and "90 MB" in one.stdout and "5.98 times smaller" in one.stdout
    assert "Worse than tolerance" in one.stdout
    both = run("report", "small", "large").stdout
    lines = {line[:12].strip(): line.split() for line in both.splitlines()}
    assert lines["size [MB]"][2:] == ["90", "*", "145"]
    assert lines["kl [nats]"][2:] == ["0.0800", "0.00400", "*"]
    assert "small (worse than tolerance)" in both.replace("\n", " ")
    assert set(json.loads(run("report", "small", "large", "--json").stdout)) == {"small", "large"}


def test_a_page_is_opened_in_a_browser(run, outputs, monkeypatch):
    opened = []
    monkeypatch.setattr("click.launch", opened.append)
    assert run("report", "large", "--open").returncode == 0
    assert opened == [(outputs / "large/report.html").as_uri()]


def test_a_folder_without_a_report_is_refused(run, outputs):
    done = run("report", "large", "nowhere")
    assert done.returncode == 2 and "nowhere has no report.json" in done.stderr
