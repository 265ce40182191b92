"""Another Python environment on this machine: every job is done there, by this very version of coldpress.

The environment lies in a folder, or is made from a file of requirements together with what coldpress needs. coldpress
itself need not be in it: jobs find the one that runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from coldpress.errors import ColdpressError
from coldpress.parts import option
from coldpress.parts.needs import required
from coldpress.systems.processes.elsewhere import Elsewhere, variables_of_another
from coldpress.systems.processes.fork_server import Start
from coldpress.systems.processes.interpreters import interpreter_in, made_environment


@dataclass(frozen=True)
class PythonEnvironment(Elsewhere):
    """The folder of a Python, or what shall be in it, and what its processes find in their environment."""

    title: ClassVar[str] = "another Python environment"

    path: str | None = option("folder of the environment's python", None)
    variables: dict[str, str] = option("environment variables", dict)
    prepend_to_path: tuple[str, ...] = option("folders in front of PATH", ())
    requirements_file: str | None = option("file with packages of an environment that is made for the run", None)
    timeout_s: float | None = option("seconds that one job may take", None)
    hf_token: bool = option("give jobs the hub's token", False)

    def __post_init__(self) -> None:
        if self.path and self.requirements_file:
            raise ColdpressError("an environment is found by its path, or made from a requirements_file, not both")

    def start(self) -> Start:
        own = variables_of_another(self.variables, hf_token=self.hf_token)
        folders = [str(Path(folder).expanduser().absolute()) for folder in self.prepend_to_path]
        path = os.pathsep.join([*folders, own.get("PATH", os.defpath)])
        return Start((str(self._python()),), {**own, "PATH": path}, timeout_s=self.timeout_s)

    def _python(self) -> Path:
        if self.path:
            return interpreter_in(self.path)
        if self.requirements_file:
            return made_environment(Path(self.requirements_file).expanduser().absolute(), self._besides())
        raise ColdpressError(
            f"{self.title} has neither a path nor a requirements_file",
            hint="name the folder of its python: {type: python_environment, parameters: {path: FOLDER}}",
        )

    def _besides(self) -> list[str]:
        """What is installed beside what the file names."""
        return required()
