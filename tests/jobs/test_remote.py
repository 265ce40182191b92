"""A cache that machines share: what it gives is what it was given, whoever writes at the same time, whatever broke."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coldpress.cli import main
from coldpress.errors import ColdpressError
from coldpress.jobs import remote as module
from coldpress.jobs.job import Job
from coldpress.jobs.remote import Remote
from coldpress.jobs.store import Store
from coldpress.jobs.system import Executor
from coldpress.models.sources import find_model
from coldpress.systems.local import Local


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 1000)
    monkeypatch.setattr(module, "_PAUSES_S", (0.0,))


@pytest.fixture
def place(tmp_path):
    return Remote(f"file://{tmp_path / 'shared'}")


def stored(store: Store, key: str, seed: int = 0, size: int = 9_500) -> bytes:
    """A result with a large and an empty file, one of them in a folder; returns the large one's bytes."""
    data = np.random.default_rng(seed).bytes(size)
    with store.scratch() as scratch:
        (scratch / "model ü").mkdir()
        (scratch / "model ü/weights.bin").write_bytes(data)
        (scratch / "empty").touch()
        store.put(key, scratch, {"format": "onnx", "seconds": 1.0})
    store.share(key)
    return data


def pieces(tmp_path: Path) -> list[Path]:
    return sorted(file for file in (tmp_path / "shared/pieces").rglob("*") if file.is_file())


def test_another_machine_finds_the_result_and_keeps_it(place, tmp_path):
    data = stored(Store(tmp_path / "one", remote=place), "ab12")
    other = Store(tmp_path / "two", remote=place)
    entry = other.take("ab12")
    assert (entry.folder / "model ü/weights.bin").read_bytes() == data and (entry.folder / "empty").read_bytes() == b""
    assert entry.record == {"format": "onnx", "seconds": 1.0}
    assert Store(tmp_path / "two").get("ab12") is not None
    assert other.take("cd34") is None
    assert Store(tmp_path / "three", since=time.time() + 9, remote=place).take("ab12") is None


def test_equal_files_are_stored_once_and_a_transfer_goes_on(place, tmp_path):
    stored(Store(tmp_path / "one", remote=place), "ab12")
    before = {file: file.stat().st_mtime_ns for file in pieces(tmp_path)}
    stored(Store(tmp_path / "one", remote=place), "cd34")
    assert {file: file.stat().st_mtime_ns for file in pieces(tmp_path)} == before and len(before) == 10
    into = tmp_path / "into"
    read: list[str] = []
    watched = Remote(place.url)
    plain = watched._read
    object.__setattr__(watched, "_read", lambda places: read.extend(places) or plain(places))
    (into / "model ü").mkdir(parents=True)
    whole = np.random.default_rng(0).bytes(9_500)
    (into / "model ü/weights.bin").write_bytes(whole[:4_300])
    assert watched.get("ab12", into) is not None and (into / "model ü/weights.bin").read_bytes() == whole
    assert sum("/pieces/" in place for place in read) == 6, "four pieces were there"


@pytest.mark.parametrize("poison", ["piece", "cut", "record", "path", "gone"])
def test_what_does_not_hold_what_it_should_is_refused_and_made_anew(poison, place, tmp_path):
    data = stored(Store(tmp_path / "one", remote=place), "ab12")
    [record] = (tmp_path / "shared/results").rglob("*.json")
    first = pieces(tmp_path)[0]
    if poison == "piece":
        first.write_bytes(first.read_bytes()[::-1])
    if poison == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    if poison == "gone":
        first.unlink()
    if poison == "record":
        record.write_text(record.read_text().replace('"seconds": 1.0', '"seconds": 2.0'))
    if poison == "path":
        body = json.loads(record.read_text())["body"]
        body["files"]["../../evil"] = body["files"].pop("empty")
        record.write_text(json.dumps({"body": body, "hash": module._hash(json.dumps(body, sort_keys=True).encode())}))
    assert Store(tmp_path / "reader", remote=Remote(place.url, read_only=True)).take("ab12") is None
    assert record.exists(), "a reader changes nothing"
    other = Store(tmp_path / "two", remote=place)
    assert other.take("ab12") is None and not record.exists() and not (tmp_path / "evil").exists()
    stored(other, "ab12")
    third = Store(tmp_path / "three", remote=place).take("ab12")
    assert (third.folder / "model ü/weights.bin").read_bytes() == data


def test_a_read_only_one_is_given_nothing(place, tmp_path):
    stored(Store(tmp_path / "one", remote=Remote(place.url, read_only=True)), "ab12")
    assert place.entries() == []
    with pytest.raises(ColdpressError, match="read-only"):
        Remote(place.url, read_only=True).collect(0)


def test_it_is_cleaned_by_age_by_size_and_of_what_belongs_to_nothing(place, tmp_path, monkeypatch):
    store = Store(tmp_path / "one", remote=place)
    for number, key in enumerate(("aa", "bb", "cc")):
        stored(store, key, seed=number)
    (tmp_path / "shared/pieces/zz").mkdir()
    (tmp_path / "shared/pieces/zz/zzyoung").write_bytes(b"of a result that is being written")
    (tmp_path / "shared/pieces/zz/zzold").write_bytes(b"1234")
    os.utime(tmp_path / "shared/pieces/zz/zzold", (0, 0))
    assert place.collect(older_than_days=1) == (0, 4)
    assert place.collect(older_than_days=1, max_bytes=20_000) == (1, 9_500)
    assert [key for key, _ in place.entries()] == ["bb", "cc"]
    assert Store(tmp_path / "two", remote=place).take("bb") is not None
    assert place.collect(older_than_days=0) == (2, 19_000)
    assert [file.name for file in pieces(tmp_path)] == ["zzyoung"]


def test_the_command_line_lists_and_cleans_it(place, tmp_path, capsys):
    stored(Store(tmp_path / "one", remote=place), "ab12")
    for arguments, said in (
        (["ls"], "ab12  "),
        (["clean", "--older_than_days", "0"], "removed 1 results, 0.0 MB"),
        (["clean", "--max_gb", "1"], "removed 0 results, 0.0 MB"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["cache", *arguments, "--cache_dir", place.url])
        assert not ended.value.code and capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s4://bucket", "begins with s3://"),
        ("s3://key:hunter22@bucket/x", "holds a secret"),
        ("az://box/x?sig=hunter22", "holds a secret"),
        ("gs://bucket/x", "gcsfs"),
    ],
)
def test_an_address_that_cannot_be_is_refused(url, problem):
    with pytest.raises(ColdpressError, match=problem) as caught:
        Remote(url).check()
    assert caught.value.hint and "hunter22" not in str(caught.value)


def test_what_fails_is_tried_again_and_then_said_without_secrets(place, tmp_path, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_KEY", "hunter22hunter22")
    tries: list[int] = []

    def fails(*_: object, **__: object) -> None:
        tries.append(1)
        raise OSError("503 busy, key hunter22hunter22, https://x/?sig=abc&se=1")

    monkeypatch.setattr(type(place._files), "exists", fails)
    with pytest.raises(ColdpressError, match=r"503 busy, key \*\*\*, https://x/\?sig=\*\*\*&se=1") as caught:
        place.check()
    assert len(tries) == 2 and caught.value.exit_code == 1


_WRITER = """
import sys
from tests.jobs.test_remote import Remote, Store, module, stored
module.PIECE = 1000
store = Store(sys.argv[2], remote=Remote(sys.argv[1]))
for number in range(6):
    stored(store, f"k{number}", seed=number)
"""


def at_once(url: str, folder: Path, count: int = 4) -> None:
    """As many processes write the same results."""
    root = str(Path(__file__).parents[2])
    commands = [[sys.executable, "-c", _WRITER, url, str(folder / f"p{number}")] for number in range(count)]
    running = [subprocess.Popen(command, cwd=root) for command in commands]
    assert [one.wait() for one in running] == [0] * count
    reader = Store(folder / "reader", remote=Remote(url))
    for number in range(6):
        found = reader.take(f"k{number}")
        assert (found.folder / "model ü/weights.bin").read_bytes() == np.random.default_rng(number).bytes(9_500)


@pytest.mark.full
def test_four_processes_write_at_once(place, tmp_path):
    at_once(place.url, tmp_path)


def test_what_was_made_before_there_was_a_remote_is_brought_later(place, tmp_path, tiny_model):
    job = Job("metric", "size", {}, find_model(str(tiny_model)))
    Executor(Local(), Store(tmp_path / "one")).result(job)
    Executor(Local(), Store(tmp_path / "one", remote=place)).result(job)
    assert [key for key, _ in place.entries()] == [job.key]


def test_a_place_that_is_not_there_is_said_before_work(tmp_path, monkeypatch):
    with pytest.raises(ColdpressError, match="there is no shared cache at file:"):
        Remote(f"file://{tmp_path}/typo", read_only=True).check()
    there = Remote(f"file://{tmp_path}/there")
    there.check()
    assert not [file for file in tmp_path.rglob("*") if file.is_file()], "the probe is gone"

    def no_bucket(*_):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(module, "_replace", no_bucket)
    with pytest.raises(ColdpressError, match=r"cannot write to the shared cache .*bucket does not exist"):
        there.check()
