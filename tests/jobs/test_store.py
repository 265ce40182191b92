from __future__ import annotations

import subprocess
import sys

import pytest

from coldpress.jobs.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def put(store: Store, key: str, text: str = "hello") -> None:
    with store.scratch() as scratch:
        (scratch / "a.txt").write_text(text)
        store.put(key, scratch, {"answer": 42})


def test_a_result_is_found_again(store):
    put(store, "k1")
    entry = Store(store.root).get("k1")
    assert entry.record == {"answer": 42}
    assert (entry.folder / "a.txt").read_text() == "hello"


def test_an_unknown_key_has_no_result(store):
    assert store.get("nothing") is None


def test_a_result_that_somebody_changed_is_no_result(store):
    put(store, "k1")
    (store.get("k1").folder / "a.txt").write_text("other text")
    assert store.get("k1") is None
    put(store, "k1", "again")
    assert (store.get("k1").folder / "a.txt").read_text() == "again"


def test_scratch_is_gone_after_a_failure(store):
    with pytest.raises(RuntimeError), store.scratch() as scratch:
        (scratch / "half").write_text("x")
        raise RuntimeError("no")
    assert not scratch.exists()
    assert not list((store.root / "scratch").iterdir())


def test_old_results_are_collected(store):
    put(store, "k1")
    put(store, "k2")
    assert store.collect(older_than_days=1)[0] == 0
    assert store.collect(older_than_days=0)[0] == 2
    assert store.get("k1") is None


WORKER = """
import sys
from coldpress.jobs.store import Store
store = Store(sys.argv[1])
print("asks", flush=True)
with store.lock("k"):
    if store.get("k") is None:
        print("works", flush=True)
        sys.stdin.readline()
        with store.scratch() as scratch:
            (scratch / "worker").write_text(sys.argv[2])
            store.put("k", scratch, {"worker": sys.argv[2]})
    else:
        print("finds", flush=True)
"""


def started(store, name):
    """A worker that has asked for the lock; one that gets it works until it reads a line."""
    words = [sys.executable, "-c", WORKER, str(store.root), name]
    worker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "asks\n"
    return worker


def test_two_processes_do_one_job_once(store):
    first = started(store, "a")
    assert first.stdout.readline() == "works\n"
    second = started(store, "b")
    assert store.get("k") is None
    assert (first.communicate("go on\n")[0], second.communicate()[0]) == ("", "finds\n")
    assert store.get("k").record["worker"] == "a"


def test_a_killed_worker_leaves_no_result_and_no_lock(store):
    worker = started(store, "a")
    assert worker.stdout.readline() == "works\n"
    worker.kill()
    worker.communicate()
    assert store.get("k") is None
    with store.lock("k"):
        put(store, "k")
    assert store.get("k") is not None
