"""The same work has the same key, wherever and whenever its files were put there; and other work another one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from coldpress.jobs.job import Job, execute, lookup
from coldpress.jobs.store import Store
from coldpress.jobs.system import Executor, System
from coldpress.models.model import Model, content_key
from tests.conftest import write_model
from tests.onnx_models import dense, saved

LARGE = 3 << 20  # bytes, of a file whose hash is remembered


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """What is remembered of files."""
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))


def touched(folder: Path, seconds: float) -> Path:
    """All files of a folder, as if they had been written at another time."""
    for file in folder.rglob("*"):
        os.utime(file, (seconds, seconds))
    return folder


def large(folder: Path, changed: bool = False) -> Path:
    """A checkpoint with a large file in it, whose middle may be changed."""
    tensors = {"w": np.zeros(LARGE // 4, np.float32)}
    tensors["w"][LARGE // 8] = changed
    return write_model(folder, tensors)


def test_copies_in_other_folders_and_of_other_times_have_one_key(tmp_path):
    first = large(tmp_path / "first")
    second = touched(Path(shutil.copytree(first, tmp_path / "else" / "where")), 1e9)
    assert content_key(first) == content_key(second)
    assert content_key(first) != content_key(large(tmp_path / "other", changed=True))
    (second / "config.json").rename(second / "settings.json")
    assert content_key(first) != content_key(second), "the names in a folder count"


def test_a_byte_that_changed_is_noticed_even_if_the_file_says_it_was_not_touched(tmp_path):
    file = large(tmp_path / "model") / "model.safetensors"
    os.utime(file, (1e9, 1e9))
    before, known = content_key(file), file.stat()
    assert list((tmp_path / "cache/digests").iterdir()), "its hash is remembered"
    with file.open("r+b") as stream:
        stream.seek(LARGE // 2)
        stream.write(b"\1")
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (known.st_size, known.st_mtime_ns)
    assert content_key(file) != before


def test_a_large_file_is_read_once(tmp_path):
    file = large(tmp_path / "model") / "model.safetensors"
    os.utime(file, (1e9, 1e9))
    key = content_key(file)
    [memory] = (tmp_path / "cache/digests").iterdir()
    facts, _ = json.loads(memory.read_text())
    memory.write_text(json.dumps([facts, "what is remembered"]))
    assert content_key(file) != key, "the hash is taken from there"
    memory.write_text("{ torn")
    assert content_key(file) == key


def test_the_tensors_of_a_single_graph_belong_to_it(tmp_path):
    model, files = dense(), []
    for name, value in (("one", 1), ("two", 1), ("three", 2)):
        (tmp_path / name).mkdir()
        weights = onnx.numpy_helper.from_array(np.full(4096, value, np.float32), "unused")
        made = onnx.ModelProto.FromString(model.SerializeToString())
        made.graph.initializer.append(weights)
        files.append(tmp_path / name / "model.onnx")
        onnx.save(made, files[-1], save_as_external_data=True, location="weights.bin", size_threshold=1024)
    one, two, three = map(content_key, files)
    assert one == two and one != three


def custom(folder: Path, **parameters: object) -> Job:
    """A job of the user's function in ``folder/score.py``."""
    model = saved(dense(), folder / "model") if not (folder / "model").exists() else folder / "model"
    options = {"script": str(folder / "score.py"), "function": "score", **parameters}
    return Job("metric", "custom", options, Model(model, "onnx", content_key(model)))


def write_script(folder: Path, result: int = 7) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.py").write_text(
        "def score(model, target):\n    from what_it_scores import RESULT\n    return RESULT\n"
    )
    (folder / "what_it_scores.py").write_text(f"RESULT = {result}\n")
    (folder / "unrelated.py").write_text(f"nobody = {folder.name!r}\n")
    return folder


def test_a_script_counts_by_what_it_and_the_modules_beside_it_say(tmp_path):
    first, second = custom(write_script(tmp_path / "a")), custom(write_script(tmp_path / "b"))
    assert first.key == second.key
    assert first.key != custom(write_script(tmp_path / "c", result=8)).key


def test_data_counts_by_its_content_and_hub_names_by_their_names(tmp_path):
    for folder, line in (("a", "hello"), ("b", "hello"), ("c", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(json.dumps({"text": line}))
    model = Model(tmp_path, "hf", "key")

    def key(*files: str, **data: str) -> str:
        source = {"type": "text_corpus", "parameters": {**data, "data_files": files}}
        return Job("metric", "perplexity", {"data": source}, model).key

    rows = [key(str(tmp_path / name / "rows.jsonl")) for name in "abc"]
    assert rows[0] == rows[1] != rows[2]
    assert key(str(tmp_path / "a/*.jsonl")) == rows[0], "a pattern counts as what it finds"
    assert key("x.jsonl", data_name="some/set") != key("y.jsonl", data_name="some/set")


def test_a_job_says_what_it_reads_so_that_it_can_be_shipped(tmp_path):
    job = custom(write_script(tmp_path / "here"))
    assert [one.path for one in job.inputs] == [tmp_path / "here/model", tmp_path / "here/score.py"]
    there = tmp_path / "there"
    for index, one in enumerate(job.inputs):
        root = one.path if one.path.is_dir() else one.path.parent
        place = there / str(index) / one.path.name
        for file in one.files:
            target = (place if one.path.is_dir() else place.parent) / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    places = {one.path: there / str(index) / one.path.name for index, one in enumerate(job.inputs)}
    moved = job.moved(places.__getitem__)
    assert moved.key == job.key
    shutil.rmtree(tmp_path / "here")
    program = (
        "import sys, json; from coldpress.jobs.job import *; execute(Job.from_json(json.load(sys.stdin)),"
        " Store(sys.argv[1]))"
    )
    store = Store(tmp_path / "results")
    subprocess.run(
        [sys.executable, "-c", program, store.root], input=json.dumps(moved.to_json()), text=True, check=True
    )
    assert lookup(job, store).numbers == {"value": 7.0}


def test_a_copied_store_keeps_its_results(tmp_path):
    job = custom(write_script(tmp_path / "here"))
    passed = Job("pass", "onnx_opset_conversion", {"target_opset": 20}, job.model)
    store = Store(tmp_path / "results")
    execute(job, store)
    made = execute(passed, store).model
    with (made.path / "big.bin").open("wb") as stream:  # nobody may: the result is none any more
        stream.write(bytes(LARGE))
    assert lookup(passed, store) is None
    (made.path / "big.bin").unlink()
    copy = Path(
        shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copy)
    )  # as cp -r, which keeps no times
    found = lookup(passed, Store(copy))
    assert found.cached and found.model.path.is_relative_to(copy) and found.model.key == made.key
    assert lookup(job, Store(copy)).numbers == {"value": 7.0}
    graph = found.model.path / "model.onnx"
    touched(copy, 1e9)
    assert lookup(passed, Store(copy)) is not None
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert lookup(passed, Store(copy)) is None and lookup(passed, store) is not None


class Elsewhere(System):
    """A machine of another kind."""

    def __init__(self, cores: int):
        self.cores = cores

    @property
    def machine(self):
        return {"processor": "abacus", "cores": self.cores}


def test_times_belong_to_the_machine_and_other_numbers_do_not(tmp_path):
    model, store = Model(tmp_path, "onnx", "key"), Store(tmp_path / "results")

    def key(part: str, cores: int) -> str:
        return Executor(Elsewhere(cores), store).placed(Job("metric", part, {}, model)).key

    assert key("latency", 2) != key("latency", 4) and key("generation", 2) != key("generation", 4)
    assert key("size", 2) == key("size", 4)
    here = System().machine
    assert here["processor"] and here["cores"] >= 1 and here["onnxruntime"]
