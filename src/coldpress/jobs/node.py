"""What a process that does jobs tells of itself: what results depend on where they are made."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from coldpress.errors import ColdpressError
from coldpress.parts.needs import FLAVOURS, installed_version
from coldpress.target import physical_cores, processor

#: what runs models, in all its flavours
_RUNTIMES = (*(name for one, flavours in FLAVOURS.items() for name in (one, *flavours)), "torch")


@dataclass(frozen=True)
class Node:
    """``python``: its version, major and minor. ``sources``: hash of the coldpress that is there. ``machine``: what
    times depend on. ``installed``: distribution, in lower case -> version.
    """

    python: str
    sources: str
    machine: dict[str, str | int]
    installed: dict[str, str]

    def version(self, distribution: str) -> str | None:
        """As `parts.needs.installed_version`, over there."""
        names = (distribution, *FLAVOURS.get(distribution, ()))
        return next((self.installed[name.lower()] for name in names if name.lower() in self.installed), None)


def this_machine() -> Mapping[str, str | int]:
    """Processor, cores, and versions of runtimes."""
    runtimes = {name: known for name in _RUNTIMES if (known := installed_version(name))}
    return {"processor": processor(), "cores": physical_cores(), **runtimes}


def this_node() -> Node:
    found = {one.metadata["Name"].lower(): one.version for one in distributions()}
    version = ".".join(platform.python_version_tuple()[:2])
    return Node(version, sources(), dict(this_machine()), found)


def check_installed(installed: Mapping[str, str | None]) -> None:
    """Raise ColdpressError unless these versions are here: a job's key says that it is done with them."""
    for name, known in installed.items():
        if (found := installed_version(name)) != known:
            raise ColdpressError(
                f"{name} is {found or 'not installed'} where the job is done, and was {known} when the run began",
                hint="run it anew",
            )


@cache
def sources() -> str:
    """The hash of all Python files of this coldpress: two that are equal give equal results."""
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        found.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return found.hexdigest()
