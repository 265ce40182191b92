"""Where jobs are done: a system, and an executor that sends it jobs on behalf of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job, Progress, Result, lookup, silent
from coldpress.jobs.node import this_machine
from coldpress.jobs.store import Store


class System:
    """A place where jobs run. Subclasses are frozen dataclasses; their fields say how to get there.

    ``title``: how people call it. ``is_ready``: whether jobs can be sent there; if not, a request for it is read and
    checked, but not run.
    """

    title: ClassVar[str] = ""
    is_ready: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def workers(self) -> int:
        """How many jobs run side by side there without disturbing each other's times.

        A search tries as many points at once.
        """
        return 1

    @property
    def machine(self) -> Mapping[str, str | int]:
        """What times depend on where the jobs run: processor, cores, versions of runtimes.

        By default those of this machine.
        """
        return this_machine()

    def placed(self, job: Job) -> Job:
        """A job as it is done there: times belong to the machine, other results to the versions of what it needs."""
        machine = self.machine
        return job if job.machine == machine else replace(job, machine=machine)

    def check(self) -> None:
        """Raise ColdpressError when jobs cannot run there; early and cheap."""
        if not self.is_ready:
            raise ColdpressError(
                f"running jobs on {self.title} is a later capability of coldpress",
                hint="run it on this machine with --system local",
            )

    def started_early(self, name: str) -> AbstractContextManager[None]:
        """Start what the pass of this name will need, before it is sure that it will be sent; what was not used is
        ended."""
        return nullcontext()

    def map(self, jobs: Iterable[Job], store: Store, progress: Progress = silent) -> Iterator[tuple[Job, Result]]:
        """Do jobs and give each with its result as it is finished; results lie in ``store`` afterwards.

        The order is the system's. A job that fails raises its ColdpressError here. Up to ``workers`` threads call this
        at a time.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Executor:
    """Sends the jobs of a run to its system, except those whose results are in the store."""

    system: System
    store: Store
    progress: Progress = silent

    def placed(self, job: Job) -> Job:
        """As `System.placed`."""
        return self.system.placed(job)

    def results(self, jobs: Sequence[Job]) -> list[Result]:
        """The results of jobs, in their order; equal jobs are done once."""
        jobs = [self.placed(job) for job in jobs]
        found = {job.key: known for job in jobs if (known := lookup(job, self.store, afar=True)) is not None}
        unknown = {job.key: job for job in jobs if job.key not in found}
        for key in found:  # made before there was a remote, or when it did not answer
            self.store.share(key)
        if unknown:
            done = self.system.map(unknown.values(), self.store, self.progress)
            for job, result in done:
                self.store.share(job.key)
                found[job.key] = result
        return [found[job.key] for job in jobs]

    def result(self, job: Job) -> Result:
        """The result of one job."""
        return self.results([job])[0]

    def measured_anew(self, job: Job) -> Result:
        """The result of a metric's job, whatever the store knows of it: for times, which are never taken from there."""
        with tempfile.TemporaryDirectory(prefix="coldpress-") as folder:
            return replace(self, store=Store(Path(folder))).result(job)
