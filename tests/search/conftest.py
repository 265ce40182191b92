"""Search over passes and metrics of another distribution, ``lab``, that say what they do in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coldpress.jobs.store import Store
from coldpress.runs.engine import Console, Report, run
from coldpress.workflow import Workflow
from coldpress.workflow.file import load_workflow


@pytest.fixture(autouse=True, scope="module")
def _distribution(lab_parts: None) -> None:
    """All searches may use the distribution's parts."""


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the parts of the distribution write what they do."""
    monkeypatch.setenv("LAB_LOG", str(tmp_path / "lab.log"))
    return tmp_path / "lab.log"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.onnx").write_text("not a graph")
    return folder


@pytest.fixture
def workflow(source: Path) -> Callable[..., Workflow]:
    """A search over lab's passes; keywords replace whole parts of it."""

    def make(**changes: Any) -> Workflow:
        data = {
            "model": str(source),
            "passes": [{"type": "crush", "parameters": {"bits": {"choice": [8, 4, 2]}}}],
            "metrics": [{"type": "weight", "goals": {"mass": {"priority": 1}}}],
        }
        return load_workflow({**data, **changes})

    return make


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Report]:
    """Run a workflow on a store of the test's own."""

    def go(workflow: Workflow, **options: Any) -> Report:
        said = options.pop("said", [])
        return run(workflow, store=Store(tmp_path / "cache"), console=Console(said.append), **options)

    return go
