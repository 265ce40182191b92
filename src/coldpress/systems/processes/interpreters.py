"""Interpreters of other environments: found in a folder, or made from a file of requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from coldpress.environment import cache_folder
from coldpress.errors import WORK_FAILED, ColdpressError

_DONE = "complete"
_LINES_OF_ERRORS = 8


def interpreter_in(path: str) -> Path:
    """The python of an environment: in its folder, or in the folder of its programs; ColdpressError without one."""
    folder = Path(path).expanduser().absolute()
    names = ("python", "bin/python", "python.exe", "Scripts/python.exe")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ColdpressError(f"path: there is no python in {folder}", hint="name the folder of an environment")
    return found


def made_environment(requirements: Path, besides: Iterable[str]) -> Path:
    """The python of an environment with what a file names, and ``besides``; it is made at the first need.

    Kept in the cache under a hash of the file; files that this one names do not count. ColdpressError, with the end of
    what pip says, where it cannot be made.
    """
    from filelock import FileLock

    if not requirements.is_file():
        raise ColdpressError(f"requirements_file: there is no file {requirements}")
    besides = sorted(besides)
    content = requirements.read_bytes()
    facts = b"\n".join([content, "\n".join(besides).encode(), sys.version.encode()])
    folder = cache_folder() / "environments" / hashlib.sha256(facts).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / _DONE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)], requirements)
            install = [str(interpreter_in(str(folder))), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
            _run([*install, *besides], requirements)
            (folder / _DONE).touch()
        os.utime(folder)
    return interpreter_in(str(folder))


def _run(command: list[str], requirements: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-_LINES_OF_ERRORS:])
        raise ColdpressError(
            f"no environment can be made from {requirements}:\n  {tail}",
            hint="try 'pip install -r' with that file in an environment of your own",
            exit_code=WORK_FAILED,
        )
