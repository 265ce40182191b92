"""What systems share whose jobs are done on this machine, on the same files, by another Python."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from coldpress import environment
from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job, Progress, Result, silent
from coldpress.jobs.node import Node
from coldpress.jobs.store import Store
from coldpress.jobs.system import System
from coldpress.systems.processes.fork_server import Start, described, execute_fresh

OLDEST_PYTHON = (3, 10)
#: where the hub's client finds a token, in the order it looks
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class Elsewhere(System):
    """Does every job in a process of its own, which `start` tells how to start."""

    def start(self) -> Start:
        raise NotImplementedError

    @property
    def node(self) -> Node:
        """What the place tells of itself; it is asked once. ColdpressError where it cannot do jobs."""
        start = self.start()
        known = start.command, tuple(sorted(start.variables.items()))
        if known not in _nodes:
            _nodes[known] = _asked(self.title, start)
        return _nodes[known]

    @property
    def machine(self) -> Mapping[str, str | int]:
        return self.node.machine

    def check(self) -> None:
        _ = self.node

    def placed(self, job: Job) -> Job:
        """Also refuses a job that needs what is not installed there."""
        node = self.node
        installed = {name: node.version(name) for name in job.needs}
        missing = [name for name, version in installed.items() if version is None]
        if missing:
            raise ColdpressError(
                f"'{job.part}' needs {', '.join(missing)}, which {self.title} lacks",
                hint=f"install it there: pip install {' '.join(missing)}",
            )
        return replace(job, machine=dict(node.machine), installed=installed)

    def map(self, jobs: Iterable[Job], store: Store, progress: Progress = silent) -> Iterator[tuple[Job, Result]]:
        start = self.start()
        for job in jobs:
            progress(job.part.replace("_", " "), 0, 0)
            yield job, execute_fresh(job, store, progress, start)


def variables_of_another(own: Mapping[str, str], *, hf_token: bool) -> dict[str, str]:
    """The environment of a process of another Python: that of this one without what belongs to this Python alone,
    with this coldpress, ``own`` variables, and the hub's token only where it is asked for.

    A variable that is called as a secret has no value of its own, since a result shows the request that it is of; it
    gets that of this process.
    """
    for name, value in own.items():
        if environment.is_secret(name) and value:
            raise ColdpressError(
                f"variables: {name} is a secret, and results hold the file that it stands in",
                hint=f"write {name}: '' and set it in the environment of coldpress, or use hf_token for the hub's",
            )
    own = {name: value for name, value in own.items() if value or not environment.is_secret(name)}
    of_this_python = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", *_TOKENS)
    found = {name: value for name, value in os.environ.items() if name not in of_this_python}
    paths = [str(environment.package_alone()), own.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))]
    token = {"HF_TOKEN": _hub_token()} if hf_token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    return {**found, **token, **own, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _hub_token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise ColdpressError("hf_token is asked for, but there is no token here", hint="set HF_TOKEN")
    return token


_nodes: dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], Node] = {}


def _asked(title: str, start: Start) -> Node:
    try:
        return described(start)
    except ColdpressError as error:
        python = _python_of(start)
        if python and python < OLDEST_PYTHON:
            raise ColdpressError(
                f"{title} has Python {'.'.join(map(str, python))}; coldpress needs 3.10 or newer",
                hint="make it with a newer one",
            ) from None
        hint = "it needs what coldpress needs: pip install there what 'No module named' tells, or coldpress itself"
        raise ColdpressError(f"{title} cannot do jobs: {error.message}", hint=hint) from None
    except OSError as error:
        raise ColdpressError(f"{title} cannot be started: {error}", hint=f"is {start.command[0]} there?") from None


def _python_of(start: Start) -> tuple[int, ...]:
    """The version of a Python that may be too old to run coldpress; empty where nothing answers."""
    ask = [*start.command, "-c", "import sys; print(*sys.version_info[:2])"]
    done = subprocess.run(ask, env=dict(start.variables), capture_output=True, text=True, check=False)
    return tuple(int(part) for part in done.stdout.split()) if done.returncode == 0 else ()
