"""Another Python environment that has ONNX Runtime alone: what measures an ONNX model by itself is done there, all else
here.

So one model can be measured under several flavours of ONNX Runtime, which cannot be in one environment. What compares
with a model that is no graph needs torch, and is done here, as passes are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from coldpress.jobs.job import Job, Progress, Result, silent
from coldpress.jobs.store import Store
from coldpress.systems.local import Local
from coldpress.systems.python_environment import PythonEnvironment

#: what reads a job and an ONNX model, besides the runtime
_READERS = ("blake3", "filelock", "msgspec", "numpy", "onnx", "onnx-ir", "platformdirs", "psutil")
_HERE = Local()


@dataclass(frozen=True)
class IsolatedOrt(PythonEnvironment):
    """As a Python environment; with a requirements_file, little is installed besides."""

    title: ClassVar[str] = "another environment with ONNX Runtime"

    def started_early(self, name: str) -> AbstractContextManager[None]:
        return _HERE.started_early(name)

    def placed(self, job: Job) -> Job:
        return super().placed(job) if _is_of_onnx_alone(job) else _HERE.placed(job)

    def map(self, jobs: Iterable[Job], store: Store, progress: Progress = silent) -> Iterator[tuple[Job, Result]]:
        for job in jobs:
            yield from (
                super().map([job], store, progress) if _is_of_onnx_alone(job) else _HERE.map([job], store, progress)
            )

    def _besides(self) -> list[str]:
        return list(_READERS)


def _is_of_onnx_alone(job: Job) -> bool:
    return job.kind == "metric" and {model.format for model in (job.model, job.source or job.model)} == {"onnx"}
