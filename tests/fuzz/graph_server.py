"""Graphs built one after the other by forks of one process that has built one already, so that hundreds of presses take
minutes.

``python -m tests.fuzz.graph_server``: on a line of stdin the path of a request of `coldpress.graphs.worker`, on a line
of stdout, as JSON, the worker's exit code and what it printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class GraphServer:
    """``Popen`` does for the worker what ``subprocess.Popen`` does."""

    PIPE = subprocess.PIPE

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.fuzz.graph_server"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def Popen(self, command: list[str], **_: Any) -> _Worker:  # noqa: N802
        assert command[1:3] == ["-m", "coldpress.graphs.worker"]
        return _Worker(self)

    def ask(self, question: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(question)
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)


class _Worker:
    """A worker that does its request when its answer is waited for."""

    def __init__(self, server: GraphServer):
        self._server, self.stdin = server, io.StringIO()
        self.returncode: int | None = None

    def communicate(self) -> tuple[str, str]:
        done = self._server.ask(self.stdin.getvalue())
        self.returncode = done["returncode"]
        return done["stdout"], done["stderr"]

    def poll(self) -> int:
        return self.returncode or 0  # nothing is running that would have to be ended


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for number, line in enumerate(sys.stdin):
        if number == 0:  # with its imports the process is what its forks begin with
            with tempfile.TemporaryDirectory() as place, contextlib.suppress(Exception):
                _build({**json.loads(Path(line.strip()).read_text()), "output": place}, Path(place))
        answers.write(json.dumps(_forked(line.strip())) + "\n")
        answers.flush()


def _build(request: dict[str, Any], place: Path) -> None:
    from coldpress.graphs.worker import main

    (place / "request.json").write_text(json.dumps(request))
    with contextlib.redirect_stdout(io.StringIO()):
        main(place / "request.json")


def _forked(question: str) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            sys.stdin = io.StringIO(f"{question}\n")
            sys.argv[1:] = [json.loads(Path(question).read_text())["exporter"]]
            try:
                runpy.run_module("coldpress.graphs.worker", run_name="__main__", alter_sys=True)
            except BaseException:
                import traceback

                traceback.print_exc()
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {"returncode": code, "stdout": _text(out), "stderr": _text(errors)}


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read())


if __name__ == "__main__":
    _serve()
