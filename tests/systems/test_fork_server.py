"""Each job has a process of its own, whatever the one before it did there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from coldpress import ColdpressError, environment
from coldpress.jobs.job import Job
from coldpress.jobs.store import Store
from coldpress.models.model import Model
from coldpress.systems.processes.fork_server import close, execute_fresh
from tests.waiting import runs, until

pytestmark = pytest.mark.usefixtures("lab_parts")


@pytest.fixture
def do(tmp_path):
    (tmp_path / "model").mkdir()
    model, store = Model(tmp_path / "model", "onnx", "key"), Store(tmp_path / "cache")

    def run(does="tell", number=0, progress=lambda *_: None, metric="worker"):
        return execute_fresh(Job("metric", metric, {"does": does, "number": number}, model), store, progress)

    yield run
    close()


def test_every_job_has_a_process_without_a_past(do):
    first, second = do(number=1).numbers, do(number=2).numbers
    assert first["pid"] != second["pid"]
    assert first["earlier"] == second["earlier"] == 0


def test_a_known_result_is_not_made_again(do):
    assert do(number=1).numbers == do(number=1).numbers


def test_it_sees_the_environment_and_the_folder_of_now(do, tmp_path, monkeypatch):
    do(number=1)
    monkeypatch.setenv("COLDPRESS_LAB_WISH", "quiet")
    monkeypatch.chdir(tmp_path / "model")
    found = do(number=2).numbers
    assert found["wish"] == "quiet"
    assert found["folder"] == str(tmp_path / "model")


def test_only_where_times_are_measured_threads_wait_as_in_an_app(do, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that what is made here is undone afterwards, too
        monkeypatch.delenv(name)
    environment.prepare()
    assert do().numbers["waits"] == "PASSIVE"
    assert do(metric="timer").numbers["waits"] is None


def test_progress_comes_through_and_what_libraries_print_does_not_disturb(do):
    seen = []
    do("mutter", progress=lambda *step: seen.append(step))
    assert seen == [("working", 1, 2)]


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("refuse", "not this model"),
        ("break", "exit code 1:(.|\n)*ValueError: it broke in there"),
        ("die", "exit code -9:(.|\n)*the last words"),
    ],
)
def test_a_failure_is_told_and_the_next_job_is_done(do, does, message):
    with pytest.raises(ColdpressError, match=message) as error:
        do(does)
    if does == "refuse":
        assert error.value.hint == "another one"
    assert do(number=1).numbers["earlier"] == 0


def test_a_process_that_cannot_start_says_why(do, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho a library is missing >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ColdpressError, match=r"exit code 3:(.|\n)*a library is missing"):
        do()
    monkeypatch.undo()
    assert do(number=1).numbers["earlier"] == 0


def test_an_interrupt_ends_the_work(do):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(progress=interrupt)
    assert _servers(psutil.Process()) == []
    assert do(number=1).numbers["earlier"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_the_work_of_a_program_that_ignores_interrupts_ignores_them(do, handler):
    """As a program does that a shell has put into the background: an interrupt of the group is not meant for it."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        if handler == signal.SIG_IGN:
            assert do("interrupt").numbers["earlier"] == 0
        else:
            with pytest.raises(ColdpressError, match="exit code -2"):
                do("interrupt")
    finally:
        signal.signal(signal.SIGINT, before)


def test_nothing_is_left_when_the_program_ends(tmp_path):
    """Also if it is killed, and cannot close anything."""
    program = """
import os, signal, sys
from tests.systems.test_fork_server import Job, Model, Path, Store, execute_fresh
folder = Path(sys.argv[1])
job = Job("metric", "worker", {"does": "tell", "number": 1}, Model(folder, "onnx", "key"))
execute_fresh(job, Store(folder / "cache"), lambda *_: None)
print("done", flush=True)
signal.pause()
"""
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=root, text=True
    )
    assert child.stdout and child.stdout.readline() == "done\n"
    left = _servers(psutil.Process(child.pid))
    child.kill()
    child.wait()
    assert left
    until(lambda: not any(map(runs, left)), "the end of the servers")


def _servers(process):
    return [
        one for one in process.children(recursive=True) if "coldpress.systems.processes.fork_server" in one.cmdline()
    ]
