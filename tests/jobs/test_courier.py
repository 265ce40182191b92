"""Jobs and results between machines that share no files: what is not there is fetched, and nothing that is damaged
counts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from coldpress.errors import ColdpressError
from coldpress.jobs import courier
from coldpress.jobs.courier import Damaged, Piece
from coldpress.jobs.job import Job, lookup
from coldpress.jobs.store import Store
from coldpress.models.model import Model, content_key
from coldpress.systems.ray import work
from coldpress.target import Target
from tests.onnx_models import dense, saved


@pytest.fixture
def afar(tmp_path):
    """A job whose files lie on a machine that has gone: they are read from a copy; ``read`` counts what is read."""
    source = saved(dense(), tmp_path / "here/source")
    model = Model(source, "onnx", content_key(source))
    job = Job("pass", "onnx_opset_conversion", {"target_opset": 21}, model, Target(threads=1))
    request = {"job": job.to_json(), "inputs": courier.inputs_to_json(job.inputs), "cache_dir": str(tmp_path / "node")}
    request = json.loads(json.dumps(request))
    shutil.move(tmp_path / "here", tmp_path / "there")
    reads: list[str] = []

    def read(path: str, offset: int, size: int) -> bytes:
        reads.append(path)
        return Path(path.replace("/here/", "/there/")).read_bytes()[offset : offset + size]

    return job, request, read, reads


def test_what_a_node_lacks_is_fetched_once_and_the_result_comes_back(afar, tmp_path):
    job, request, read, reads = afar
    store = Store(tmp_path / "cache")
    result = courier.received(job, store, work(request, read))
    assert result.model.key == job.key and not result.cached
    known = len(reads)
    again = courier.received(job, Store(tmp_path / "second"), work(request, read))
    assert len(reads) == known, "the node has it"
    assert again.model.path.read_bytes() if again.model.path.is_file() else True
    names = lambda folder: {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}  # noqa: E731
    assert names(lookup(job, store).model.path) == names(again.model.path)


def test_a_file_that_arrives_otherwise_is_refused_and_fetched_again(afar, tmp_path):
    job, request, read, _ = afar
    [first] = work(request, lambda path, offset, size: read(path, offset, size)[::-1])
    assert "did not arrive as it was" in first["error"]
    assert courier.received(job, Store(tmp_path / "cache"), work(request, read)).model is not None


def test_a_result_that_arrives_otherwise_does_not_count(afar, tmp_path):
    job, request, read, _ = afar
    pieces = [replace(one, data=b"x" + one.data) if isinstance(one, Piece) else one for one in work(request, read)]
    with pytest.raises(Damaged, match="did not arrive as it was"):
        courier.received(job, Store(tmp_path / "cache"), iter(pieces))
    assert lookup(job, Store(tmp_path / "cache")) is None


def test_large_files_travel_in_pieces_and_go_on_where_they_stopped(afar, tmp_path, monkeypatch):
    job, request, read, reads = afar
    monkeypatch.setattr(courier, "PIECE", 1024)

    def breaks(path: str, offset: int, size: int) -> bytes:
        if len(reads) == 3:
            raise ColdpressError("the line is dead")
        return read(path, offset, size)

    [first] = work(request, breaks)
    assert first["error"] == "the line is dead"
    pieces = list(work(request, read))
    whole = sum(file.stat().st_size for one in job.inputs for file in (tmp_path / "there").rglob("*") if file.is_file())
    assert len(reads) <= whole // 1024 + 2, "nothing is read twice"
    assert all(len(one.data) <= 1024 for one in pieces if isinstance(one, Piece))
    assert courier.received(job, Store(tmp_path / "cache"), iter(pieces)).model is not None


def test_what_is_installed_otherwise_than_the_key_says_is_refused(afar):
    _, request, read, _ = afar
    request["job"]["installed"] = {"onnx": "0.1"}
    [first] = work(request, read)
    assert "onnx is" in first["error"] and "0.1" in first["error"]
