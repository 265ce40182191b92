"""A fresh process for each job that loads a model, as an app would load it.

On Linux a process is kept that has imported what every measurement needs, and each job is done by a fork of it: nothing
of an earlier job is in there, and a third of a second is saved. Elsewhere every job starts an interpreter.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

from coldpress import environment
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.forks import end_with_parent
from coldpress.jobs.job import Job, Progress, Result, execute, lookup
from coldpress.jobs.store import Store

_FORKS = sys.platform == "linux"
_CLOSING_S = 2.0
_LINES_OF_ERRORS = 12


def execute_fresh(job: Job, store: Store, progress: Progress) -> Result:
    """As `job.execute`, in a process of its own. ColdpressError, with the end of its errors, for one that dies."""
    if (known := lookup(job, store)) is not None:
        return known
    with tempfile.TemporaryDirectory(prefix="coldpress-") as folder:
        errors = Path(folder) / "errors"
        errors.touch()
        request = {"job": job.to_json(), "store": [str(store.root), store.since]}
        last, code = _do({**request, "folder": str(Path.cwd()), "errors": str(errors)}, progress)
        said = errors.read_text(encoding="utf-8", errors="replace").strip()
    if "error" in last:
        raise ColdpressError(last["error"], hint=last["hint"], exit_code=last["exit_code"])
    result = lookup(job, store)
    if result is None:
        tail = "\n  ".join(said.splitlines()[-_LINES_OF_ERRORS:])
        raise ColdpressError(f"measuring '{job.part}' ended with exit code {code}:\n  {tail}", exit_code=WORK_FAILED)
    return result


# This side: the process that is kept

_kept: _Server | None = None
_lock = threading.Lock()


def start_early() -> None:
    """Start the process of the next job, which loads its libraries meanwhile; nothing happens while it does another."""
    if _lock.acquire(blocking=False):
        try:
            _serving()
        finally:
            _lock.release()


def _serving() -> _Server:
    """The process that is kept, begun anew where it does not serve; under the lock."""
    global _kept  # noqa: PLW0603
    own = environment.of_child()
    if _kept is None or not _kept.serves(own):
        close()
        _kept = _Server(own)
    return _kept


def _do(request: dict[str, Any], progress: Progress) -> tuple[dict[str, Any], int]:
    """The last message of the process that does a request, and its exit code."""
    with _lock:
        server = _serving()
        with ExitStack() as unless_it_ends:
            unless_it_ends.callback(server.kill)
            done = server.do(request, progress)
            unless_it_ends.pop_all()
            return done


def close() -> None:
    """End the process that is kept, if there is one."""
    global _kept  # noqa: PLW0603
    if _kept is not None and _kept.is_ours:
        _kept.close()
    _kept = None


atexit.register(close)


class _Server:
    """A child that does one request after the other, each in a fork of its own; or a single one, where there is no
    fork."""

    def __init__(self, variables: dict[str, str]):
        self._variables, self._is_open, self._owner = variables, True, os.getpid()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  what a child says that cannot start
        self._process = subprocess.Popen(
            [sys.executable, "-m", "coldpress.systems.local.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
            env=variables,
        )

    @property
    def is_ours(self) -> bool:
        """Whether this very process began it, and not one that this is a fork of."""
        return self._owner == os.getpid()

    def serves(self, variables: dict[str, str]) -> bool:
        alive = self.is_ours and self._is_open and self._process.poll() is None
        return alive and variables == self._variables

    def do(self, request: dict[str, Any], progress: Progress) -> tuple[dict[str, Any], int]:
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # it has ended already, which the next line notices
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        last: dict[str, Any] = {}
        for line in self._process.stdout:
            message = json.loads(line)["coldpress"] if line.startswith('{"coldpress": ') else {}
            if "ended" in message:
                return last, int(message["ended"])
            if "progress" in message:
                progress(*message["progress"])
            last = message or last
        self._is_open = False
        code = self._process.wait()
        self._said.seek(0)
        with Path(request["errors"]).open("ab") as errors:
            errors.write(self._said.read())
        return last, code

    def kill(self) -> None:
        """The fork goes with it."""
        self._is_open = False
        self._process.kill()
        self.close()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


# The other side


def _serve() -> None:
    # whoever asked is interrupted, too, and closes or kills this process; a program in the background, which ignores
    # it, does neither
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_interrupt = signal.SIG_IGN if on_interrupt == signal.SIG_IGN else signal.SIG_DFL
    if not _FORKS:
        if line := sys.stdin.readline():
            _work(json.loads(line))
        return
    with suppress(ImportError):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401

        import coldpress.graphs.session  # noqa: F401
    server = os.getpid()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _work_and_exit(json.loads(line), on_interrupt, server)
        _, status = os.waitpid(child, 0)
        _say({"ended": os.waitstatus_to_exitcode(status)})
    os._exit(0)  # skips tearing down the libraries


def _work_and_exit(request: dict[str, Any], on_interrupt: signal.Handlers, server: int) -> NoReturn:
    """In a fork: what is left of the parent is not to be cleaned up here."""
    code = 1
    try:
        end_with_parent(server)
        signal.signal(signal.SIGINT, on_interrupt)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _work(request)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(request: dict[str, Any]) -> None:
    os.dup2(os.open(request["errors"], os.O_WRONLY | os.O_APPEND), 2)
    os.chdir(request["folder"])
    job, store = Job.from_json(request["job"]), Store(*request["store"])
    if job.part_class.is_timed:
        environment.as_for_an_app()
    try:
        execute(job, store, lambda what, done, total: _say({"progress": [what, done, total]}))
    except ColdpressError as error:
        _say({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})


def _say(message: dict[str, Any]) -> None:
    print(json.dumps({"coldpress": message}), flush=True)


if __name__ == "__main__":
    _serve()
