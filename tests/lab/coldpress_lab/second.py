"""A system that does its jobs in interpreters of their own, two at a time: a job goes in as JSON, its result lies in
the store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from coldpress import ColdpressError, Store, environment
from coldpress.jobs.job import Job, Progress, Result, execute, lookup, silent
from coldpress.jobs.system import System
from coldpress_lab import log


@dataclass(frozen=True)
class Second(System):
    """A second interpreter for each job."""

    title: ClassVar[str] = "a second interpreter"
    workers: int = field(default=2, metadata={"help": "interpreters at a time"})

    def map(self, jobs: Iterable[Job], store: Store, progress: Progress = silent) -> Iterator[tuple[Job, Result]]:
        for job in jobs:
            log(f"sent {job.part}")
            request = json.dumps({"job": job.to_json(), "store": [str(store.root), store.since]})
            done = subprocess.run(
                [sys.executable, "-m", "coldpress_lab.second"],
                input=request,
                capture_output=True,
                text=True,
                check=False,
                env=environment.of_child(),
            )
            if done.returncode:
                raise ColdpressError(done.stderr.strip().splitlines()[-1], exit_code=done.returncode)
            yield job, lookup(job, store) or Result.from_json(json.loads(done.stdout.splitlines()[-1]))


def _work() -> None:
    request = json.load(sys.stdin)
    try:
        print(json.dumps(execute(Job.from_json(request["job"]), Store(*request["store"])).to_json()))
    except ColdpressError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _work()
