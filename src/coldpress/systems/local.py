"""This machine: what loads a model to measure it runs in a fresh process, as an app would; all else in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.job import Job, Progress, Result, execute, lookup
from coldpress.parts import System
from coldpress.store import Store


@dataclass(frozen=True)
class Local(System):
    """Runs jobs one after the other on this machine."""

    title: ClassVar[str] = "this machine"

    def map(
        self, jobs: Iterable[Job], store: Store, progress: Progress = lambda what, done, total: None
    ) -> Iterator[tuple[Job, Result]]:
        for job in jobs:
            here = job.kind == "pass" or not job.part_class.runs_model
            yield job, execute(job, store, progress) if here else _in_fresh_process(job, store, progress)


def _in_fresh_process(job: Job, store: Store, progress: Progress) -> Result:
    if (known := lookup(job, store)) is not None:
        return known
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    request = json.dumps({"job": job.to_json(), "store": [str(store.root), store.since]})
    command = [sys.executable, "-m", "coldpress.systems.local"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as noise:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True, env=environment
        )
        try:
            assert child.stdin and child.stdout
            child.stdin.write(request)
            child.stdin.close()
            last = _follow(child.stdout, progress)
            child.wait()
        finally:
            child.kill()
        noise.seek(0)
        errors = noise.read()
    if "error" in last:
        raise ColdpressError(last["error"], hint=last["hint"], exit_code=last["exit_code"])
    result = lookup(job, store)
    if result is None:
        tail = "\n  ".join(errors.strip().splitlines()[-12:])
        raise ColdpressError(
            f"measuring '{job.part}' ended with exit code {child.returncode}:\n  {tail}", exit_code=WORK_FAILED
        )
    return result


def _follow(lines: Iterable[str], progress: Progress) -> dict[str, Any]:
    """Pass on the progress that a child reports, a JSON line each; its last word is its answer."""
    last: dict[str, Any] = {}
    for line in lines:
        if line.startswith('{"coldpress": '):
            last = json.loads(line)["coldpress"]
            if "progress" in last:
                progress(*last["progress"])
    return last


def _say(message: dict[str, Any]) -> None:
    print(json.dumps({"coldpress": message}), flush=True)


def _main() -> None:
    request = json.loads(sys.stdin.read())
    try:
        execute(
            Job.from_json(request["job"]),
            Store(*request["store"]),
            lambda what, done, total: _say({"progress": [what, done, total]}),
        )
        _say({"done": True})
    except ColdpressError as error:
        _say({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})


if __name__ == "__main__":
    _main()
