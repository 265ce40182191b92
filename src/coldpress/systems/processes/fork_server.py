"""A fresh process for each job that loads a model, as an app would load it; here, or in another environment.

On Linux processes are kept that have imported what measurements need, and each job is done by a fork of one: nothing of
an earlier job is in there, and a third of a second is saved, or some seconds where torch is needed. Elsewhere every job
starts an interpreter.

Jobs, and what came of them, pass as lines of JSON. So any process does them that runs this module and finds the files
under the same paths: that of another Python, or one in a container.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import psutil

from coldpress import environment
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.forks import end_with_parent
from coldpress.jobs.job import Job, Progress, Result, execute, lookup, silent
from coldpress.jobs.node import Node, check_installed, this_node
from coldpress.jobs.store import Store
from coldpress.parts import schema

#: what is imported before the first job; torch only for jobs that run a network of transformers, as the memory of any
#: other model would contain it
_RUNTIME = ("onnx", "onnxruntime", "coldpress.graphs.session")
_NETWORK = (*_RUNTIME, "torch", "transformers.modeling_utils")
#: so begin the names of variables that no library reads when it is imported: a fork gets their values of now
_LATE = ("COLDPRESS_", "PYTEST_")
_FORKS = sys.platform == "linux"
_CLOSING_S = 2.0
_LINES_OF_ERRORS = 12


@dataclass(frozen=True)
class Start:
    """How a process is started that does jobs.

    ``command``: runs Python; what it shall run is put behind. ``variables``: its environment. ``folder``: where it
    works; by default where this process works. ``timeout_s``: so long may one job take. ``end``: a command that ends
    what was started, where killing its processes does not. ``libraries``: modules that it imports before its first job.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str]
    folder: str | None = None
    timeout_s: float | None = field(default=None, compare=False)
    end: tuple[str, ...] = ()
    libraries: tuple[str, ...] = _RUNTIME

    @property
    def late(self) -> dict[str, str]:
        """The variables that a job may get after the process was started."""
        return {name: value for name, value in self.variables.items() if name.startswith(_LATE)}

    @property
    def early(self) -> Start:
        """The same without them: where it is equal, a process started for the one serves the other."""
        return replace(self, variables={name: self.variables[name] for name in self.variables.keys() - self.late})


def here() -> Start:
    """This very interpreter, and its environment as it is now."""
    return Start((sys.executable,), environment.of_child())


def execute_fresh(job: Job, store: Store, progress: Progress, start: Start | None = None) -> Result:
    """As `job.execute`, in a process of its own. ColdpressError, with the end of its errors, for one that dies."""
    if (known := lookup(job, store)) is not None:
        return known
    start = replace(start or here(), libraries=_NETWORK if "transformers" in job.part_class.needs else _RUNTIME)
    last, ending = _do({"job": job.to_json(), "store": [str(store.root), store.since]}, progress, start)
    if "error" in last:
        raise ColdpressError(last["error"], hint=last["hint"], exit_code=last["exit_code"])
    result = lookup(job, store) or (Result.from_json(last["result"]) if "result" in last else None)
    if result is None:
        what = f"measuring '{job.part}'" if job.kind == "metric" else f"the pass '{job.part}'"
        raise ColdpressError(f"{what} {ending}", exit_code=WORK_FAILED)
    return result


def described(start: Start) -> Node:
    """What a process that is started so tells of itself. ColdpressError, with the end of its errors, for one that does
    not."""
    last, ending = _do({"describe": True}, silent, start)
    if "node" not in last:
        raise ColdpressError(f"its process {ending}", exit_code=WORK_FAILED)
    return schema.build(Node, last["node"], "node")


# This side: the processes that are kept, one for each command and what is imported

_kept: dict[tuple[tuple[str, ...], tuple[str, ...]], _Server] = {}
_lock = threading.Lock()


def start_early() -> None:
    """Start the process of the next job, which loads its libraries meanwhile; nothing happens while one is at work."""
    if _lock.acquire(blocking=False):
        try:
            _serving(here())
        finally:
            _lock.release()


def _serving(start: Start) -> _Server:
    """The process that is kept, begun anew where it does not serve; under the lock."""
    place = (start.command, start.libraries)
    kept = _kept.get(place)
    if kept is None or not kept.serves(start):
        _end(place)
        kept = _kept[place] = _Server(start)
    return kept


def _do(request: dict[str, Any], progress: Progress, start: Start) -> tuple[dict[str, Any], str]:
    """The last message of the process that does a request, and in words how it ended."""
    with _lock:
        server = _serving(start)
        with ExitStack() as unless_it_ends:
            unless_it_ends.callback(server.kill)
            limit_s = None if "describe" in request else start.timeout_s
            now = {"folder": start.folder or str(Path.cwd()), "variables": start.late}
            done = server.do({**request, **now}, progress, limit_s)
            unless_it_ends.pop_all()
            return done


def end(start: Start) -> None:
    """End the processes that are kept for this command, if there are any."""
    for place in [place for place in _kept if place[0] == start.command]:
        _end(place)


def close() -> None:
    """End all processes that are kept."""
    for place in list(_kept):
        _end(place)


def _end(place: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    kept = _kept.pop(place, None)
    if kept is not None and kept.is_ours:
        kept.close()


atexit.register(close)


class _Server:
    """A child that does one request after the other, each in a fork of its own; or a single one, where there is no
    fork."""

    def __init__(self, start: Start):
        self.start, self._is_open, self._owner = start, True, os.getpid()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the child, whose errors it takes
        self._read = 0
        self._process = subprocess.Popen(
            [*start.command, "-m", "coldpress.systems.processes.fork_server", *start.libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
            env=dict(start.variables),
        )

    @property
    def is_ours(self) -> bool:
        """Whether this very process began it, and not one that this is a fork of."""
        return self._owner == os.getpid()

    def serves(self, start: Start) -> bool:
        return self.is_ours and self._is_open and self._process.poll() is None and start.early == self.start.early

    def do(self, request: dict[str, Any], progress: Progress, limit_s: float | None) -> tuple[dict[str, Any], str]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended already, which the next lines notice
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        with self._limited(limit_s) as is_over:
            last, code = self._heard(progress)
        if is_over.is_set():
            return {}, f"was ended: it took longer than {limit_s:g} seconds"
        lines = self._errors().strip().splitlines()
        return last, f"ended with exit code {code}:\n  " + "\n  ".join(lines[-_LINES_OF_ERRORS:])

    def _errors(self) -> str:
        """What the child, and the forks of it, have written there since this was asked."""
        size = os.fstat(self._said.fileno()).st_size
        found = os.pread(self._said.fileno(), size - self._read, self._read)
        self._read = size
        return found.decode(errors="replace")

    def _heard(self, progress: Progress) -> tuple[dict[str, Any], int]:
        """The last message before a request is done, or before the child ends, and the exit code of what did it."""
        assert self._process.stdout
        last: dict[str, Any] = {}
        for line in self._process.stdout:
            message = json.loads(line)["coldpress"] if line.startswith('{"coldpress": ') else {}
            if "ended" in message:
                return last, int(message["ended"])
            if "progress" in message:
                progress(*message["progress"])
            last = message or last
        self._is_open = False
        return last, self._process.wait()

    @contextmanager
    def _limited(self, limit_s: float | None) -> Iterator[threading.Event]:
        """Kill the child when its time is over, which is then set."""
        is_over = threading.Event()

        def end_it() -> None:
            is_over.set()
            self._kill_tree()

        clock = threading.Timer(limit_s or 0.0, end_it)
        if limit_s is not None:
            clock.start()
        try:
            yield is_over
        finally:
            clock.cancel()

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        self._is_open = False
        self._kill_tree()
        self.close()

    def _kill_tree(self) -> None:
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            for process in (*own.children(recursive=True), own):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        if self.start.end:
            subprocess.run(self.start.end, env=dict(self.start.variables), capture_output=True, check=False)

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            self._kill_tree()
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
    for library in sys.argv[1:]:
        with suppress(ImportError):  # said where it is needed
            importlib.import_module(library)
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
    os.chdir(request["folder"])
    for name in [name for name in os.environ if name.startswith(_LATE)]:
        del os.environ[name]
    os.environ.update(request["variables"])
    if "describe" in request:
        _say({"node": schema.plain(this_node())})
        return
    job, store = Job.from_json(request["job"]), Store(*request["store"])
    if job.part_class.is_timed:
        environment.as_for_an_app()
    try:
        check_installed(job.installed or {})
        result = execute(job, store, lambda what, done, total: _say({"progress": [what, done, total]}))
        _say({"result": result.to_json()})
    except ColdpressError as error:
        _say({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
    except ModuleNotFoundError as error:  # an environment with little in it
        what = f"'{job.part}' needs the module {error.name}, which {sys.executable} does not find"
        _say({"error": what, "hint": "install there what brings it, or do the job elsewhere", "exit_code": WORK_FAILED})


def _say(message: dict[str, Any]) -> None:
    print(f"\n{json.dumps({'coldpress': message})}", flush=True)  # a script may have printed half a line


if __name__ == "__main__":
    _serve()
