"""Containers on this machine: every job is done in one, by this very version of coldpress, which is mounted into it.

An image needs Python and what coldpress needs. It is at hand, or built from a Dockerfile. Models and results are
mounted under the paths that they have here.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from coldpress import environment
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.jobs.job import Job, Progress, Result, silent
from coldpress.jobs.store import Store
from coldpress.parts import option
from coldpress.systems.processes.elsewhere import Elsewhere, variables_of_another
from coldpress.systems.processes.fork_server import Start, end, execute_fresh

_LINES_OF_ERRORS = 8
#: what a container gets of the environment of its client, whose command line others can read
_PASSED_ON = ("PYTHONPATH", "COLDPRESS_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_DISABLE_IMPLICIT_TOKEN")


@dataclass(frozen=True)
class Docker(Elsewhere):
    """An image, built or at hand, and how containers of it are started."""

    title: ClassVar[str] = "Docker"

    image: str = option("name of the image", "coldpress:latest")
    dockerfile: str | None = option("Dockerfile it is built from", None)
    build_context: str | None = option("folder with the Dockerfile", None)
    build_arguments: dict[str, Any] = option("arguments of the build", dict)
    run_arguments: dict[str, Any] = option("further options of docker run, such as {gpus: all}", dict)
    volumes: dict[str, str] = option("further folders: path here -> path in the container, with :ro to read only", dict)
    variables: dict[str, str] = option("environment variables", dict)
    work_dir: str = option("folder in the container where jobs work", "/coldpress")
    requirements_file: str | None = option("file with further packages to install", None)
    keep_image: bool = option("leave an image that was built for the run", False)
    timeout_s: float | None = option("seconds that one job may take", None)
    hf_token: bool = option("give jobs the hub's token", False)

    def start(self, mounts: Iterable[str] = ()) -> Start:
        """How a container is started, with further ``mounts`` as docker takes them."""
        self._check_arguments()
        own = variables_of_another(self.variables, hf_token=self.hf_token)
        own |= {"COLDPRESS_CACHE": str(environment.cache_folder())}
        given = [*(name for name in _PASSED_ON if name in own), *self.variables]
        package = environment.package_alone()
        volumes = [
            f"{(package / 'coldpress').resolve()}:{package / 'coldpress'}:ro",
            *_both(environment.cache_folder()),
        ]
        volumes += [*mounts, *(f"{Path(here).expanduser().absolute()}:{there}" for here, there in self.volumes.items())]
        user = {"user": f"{os.getuid()}:{os.getgid()}"} if hasattr(os, "getuid") else {}
        options = {"env": given, "volume": volumes, "workdir": self.work_dir, **user, **_dashed(self.run_arguments)}
        image = self._image()
        name = f"coldpress-{_short_hash(os.getpid(), image, options)}"
        docker = _docker()
        run = [docker, "run", "--rm", "--interactive", "--init", "--name", name, "--env", "HOME=/tmp", *_flags(options)]
        return Start((*run, image, "python"), own, self.work_dir, self.timeout_s, (docker, "kill", name))

    def _check_arguments(self) -> None:
        """What containers need is not replaced, and no secret becomes part of a command or of an image."""
        for name, instead in (("env", "variables"), ("volume", "volumes")):
            if name in self.run_arguments:
                raise ColdpressError(f"run_arguments: {name} would replace what jobs need", hint=f"use {instead}")
        for name in filter(environment.is_secret, self.build_arguments):
            raise ColdpressError(
                f"build_arguments: {name} is a secret, which the image and its history would keep",
                hint="build the image yourself, with docker build --secret, and name it as image",
            )

    def check(self) -> None:
        self._check_arguments()
        _said_by(
            "version", "--format", "{{.Server.Version}}", failing="no Docker answers", hint="is its daemon running?"
        )
        super().check()

    def map(self, jobs: Iterable[Job], store: Store, progress: Progress = silent) -> Iterator[tuple[Job, Result]]:
        for job in jobs:
            progress(job.part.replace("_", " "), 0, 0)
            start = self.start(_mounts(job, store))
            try:
                yield job, execute_fresh(job.moved(Path.absolute), store, progress, start)
            finally:
                end(start)

    def _image(self) -> str:
        image = self.image
        if self.dockerfile or self.build_context:
            context = Path(self.build_context or Path(self.dockerfile or "").parent).expanduser().absolute()
            file = context / (self.dockerfile or "Dockerfile") if self.build_context else Path(self.dockerfile or "")
            image = self._built(image, file.expanduser().absolute(), context)
        return self._with_packages(image) if self.requirements_file else image

    def _with_packages(self, image: str) -> str:
        file = Path(self.requirements_file or "").expanduser().absolute()
        if not file.is_file():
            raise ColdpressError(f"requirements_file: there is no file {file}")
        with tempfile.TemporaryDirectory(prefix="coldpress-") as context:
            shutil.copy(file, Path(context) / "requirements.txt")
            text = f"FROM {image}\nCOPY requirements.txt .\nRUN python -m pip install -r requirements.txt\n"
            (Path(context) / "Dockerfile").write_text(text, encoding="utf-8")
            name = f"coldpress-{_short_hash(image, file.read_text(encoding='utf-8'))}"
            return self._built(name, Path(context) / "Dockerfile", Path(context))

    def _built(self, image: str, file: Path, context: Path) -> str:
        """The image, built once by this process."""
        if image not in _built:
            if not file.is_file():
                raise ColdpressError(f"dockerfile: there is no file {file}", hint="it is looked up in build_context")
            options = _flags({"tag": image, "file": str(file), "build-arg": _pairs(self.build_arguments)})
            _said_by("build", *options, str(context), failing=f"{file} cannot be built", hint="see what Docker says")
            _built.add(image)
            if not self.keep_image:
                remove = [_docker(), "rmi", "--force", image]
                atexit.register(lambda: subprocess.run(remove, capture_output=True, check=False))
        return image


_built: set[str] = set()


def _docker() -> str:
    found = shutil.which("docker")
    if found is None:
        raise ColdpressError("there is no docker on the path", hint="install Docker, or run jobs with --system local")
    return found


def _said_by(*arguments: str, failing: str, hint: str) -> str:
    """What a command of Docker writes; ColdpressError, with the end of its errors, if it fails."""
    done = subprocess.run([_docker(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n  ".join(done.stderr.strip().splitlines()[-_LINES_OF_ERRORS:])
        raise ColdpressError(f"{failing}:\n  {tail}", hint=hint, exit_code=WORK_FAILED)
    return done.stdout


def _mounts(job: Job, store: Store) -> list[str]:
    """The store, and all that a job reads, under the paths of this machine; and where links in there lead to."""
    store.root.mkdir(parents=True, exist_ok=True)
    read = {
        path.absolute() for one in job.inputs for path in (one.path, *(file.resolve().parent for file in one.files))
    }
    outside = [path for path in sorted(read) if not path.is_relative_to(store.root)]
    return [*_both(store.root), *(f"{path}:{path}:ro" for path in outside)]


def _both(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return [f"{folder}:{folder}"]


def _dashed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the command line spells them; Python's own way has underscores."""
    return {name.replace("_", "-"): value for name, value in options.items()}


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Options of a command line: true for those without a value, lists and mappings for those that may be repeated."""
    found: list[str] = []
    for name, value in options.items():
        given = _pairs(value) if isinstance(value, Mapping) else value
        for one in given if isinstance(given, list | tuple) else [given]:
            found += [f"--{name}"] if one is True else [f"--{name}={one}"] if one is not False else []
    return found


def _short_hash(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
