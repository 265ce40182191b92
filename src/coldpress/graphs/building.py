"""Asking for graphs: the worker that builds them (``worker``) is started, perhaps early, asked, waited for, and
ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress import environment
from coldpress.errors import WORK_FAILED, ColdpressError

if TYPE_CHECKING:
    from coldpress.graphs.layout import Layout

#: the exporter of most models, whose worker can be started before one is known
_USUAL = "mobius"
#: workers that were started before there was a request for them
_idle: list[subprocess.Popen[str]] = []


@dataclass(frozen=True)
class Built:
    """What was learned of a model by building its graph: the class of transformers, and remarks."""

    architecture: str
    remarks: tuple[str, ...]


class Building:
    """A graph that a worker is building. ``result``: the layouts of the graphs, and what was learned of the model."""

    def __init__(self, worker: subprocess.Popen[str], output: Path):
        self._worker, self._output = worker, output

    def result(self) -> tuple[list[Layout], Built]:
        """Wait for it. ColdpressError for what the worker found wrong."""
        from coldpress.graphs.layout import read_layouts

        answer = _answer(*self._worker.communicate(), self._worker.returncode)
        if "error" in answer:
            raise ColdpressError(answer["error"], hint=answer["hint"], exit_code=answer["exit_code"])
        layouts = read_layouts(self._output / "layouts.json")
        (self._output / "layouts.json").unlink()
        return layouts, Built(answer["architecture"], tuple(answer["remarks"]))


@contextmanager
def begun(folder: Path, output: Path, request: Mapping[str, Any]) -> Iterator[Building]:
    """Let a worker build the graphs of the model in ``folder``, into ``output``; inside, other work can be done.

    ``request``: ``exporter``, ``provider``, ``dtype``, ``precision``, ``logits``, ``genai``, ``trust_remote_code``, and
    ``slots``: the modules of the checkpoint that adapters change.
    """
    from coldpress.models.checkpoint import Checkpoint

    Checkpoint(folder).tensors  # noqa: B018  a broken checkpoint is said here, before a process starts
    question = output / "request.json"
    question.write_text(json.dumps({"folder": str(folder), "output": str(output), **request}), encoding="utf-8")
    exporter = str(request["exporter"])
    worker = _idle.pop() if _idle and exporter == _USUAL else _started(exporter)
    try:
        assert worker.stdin
        with suppress(BrokenPipeError):  # it has ended already, and its answer says why
            worker.stdin.write(f"{question}\n")
            worker.stdin.flush()
        yield Building(worker, output)
    finally:
        _end(worker)
        question.unlink(missing_ok=True)


@contextmanager
def started_early() -> Iterator[None]:
    """Start the worker of a request that is to come, which loads its libraries meanwhile; if it does not come, the
    worker is ended."""
    _idle.append(_started(_USUAL))
    try:
        yield
    finally:
        while _idle:
            _end(_idle.pop())


def _started(exporter: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "coldpress.graphs.worker", exporter],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment.of_child(),
    )


def _end(worker: subprocess.Popen[str]) -> None:
    if worker.poll() is None:
        worker.kill()
        worker.communicate()


def _answer(said: str, errors: str, code: int) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    except (IndexError, ValueError):
        why = _last_words(errors) or f"exit code {code}"
        raise ColdpressError(
            f"building the graph failed: {why}",
            hint="is config.json complete, and that of these weights?",
            exit_code=WORK_FAILED,
        ) from None
    return answer


def _last_words(errors: str) -> str:
    """The message of the exception that ended a process, in one line; else the last line it wrote."""
    lines = errors.strip().splitlines()
    begins = next((place for place in range(len(lines) - 1, -1, -1) if lines[place].startswith("Traceback ")), None)
    if begins is None:
        return lines[-1] if lines else ""
    message = next(place for place in range(begins + 1, len(lines)) if not lines[place].startswith(" "))
    return " ".join(line.strip() for line in lines[message:])
