"""Another Python environment on this machine. Requests are read and checked; they run there later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coldpress.jobs.system import System
from coldpress.parts import option


@dataclass(frozen=True)
class PythonEnvironment(System):
    """The folder of a Python, with coldpress in it, and what its processes find in their environment."""

    title: ClassVar[str] = "another Python environment"
    is_ready: ClassVar[bool] = False

    path: str | None = option("folder of the environment's python", None)
    variables: dict[str, str] = option("environment variables", dict)
    prepend_to_path: tuple[str, ...] = option("folders in front of PATH", ())
    requirements_file: str | None = option("file with packages of an environment that is made for the run", None)
    hf_token: bool = option("give jobs the hub's token", False)
