"""This machine: what loads a model to measure it runs in a fresh process, as an app would; all else in this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from coldpress import parts
from coldpress.jobs.job import Job, Progress, Result, execute, silent
from coldpress.jobs.store import Store
from coldpress.jobs.system import System
from coldpress.systems.processes import fork_server


@dataclass(frozen=True)
class Local(System):
    """Runs jobs one after the other on this machine."""

    title: ClassVar[str] = "this machine"

    def started_early(self, name: str) -> AbstractContextManager[None]:
        early: AbstractContextManager[None] = parts.find("passes", name).started_early()
        return early

    def map(self, jobs: Iterable[Job], store: Store, progress: Progress = silent) -> Iterator[tuple[Job, Result]]:
        for job in jobs:
            progress(f"{'' if job.kind == 'pass' else 'measuring '}{job.part.replace('_', ' ')}", 0, 0)
            here = not job.runs_script and (job.kind == "pass" or not job.part_class.runs_model)
            if job.kind == "pass" and job.part_class.produces == "onnx":
                fork_server.start_early()  # the result is opened in it
            yield job, execute(job, store, progress) if here else fork_server.execute_fresh(job, store, progress)
