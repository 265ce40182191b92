"""An example's folder, in which its commands are run as they are typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import commands


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    places = {"COLDPRESS_CACHE": str(tmp_path_factory.mktemp("cache")), "HOME": str(tmp_path_factory.mktemp("home"))}
    users = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}  # is ours to set
    return {**users, **places, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def lab(environment, tmp_path):
    """A copy of an example's folder in which commands are run as they are typed; the user's home holds caches of the
    hub at most."""

    def enter(name):
        folder = shutil.copytree(commands.EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("models"))
        (folder / "README.md").unlink()

        def run(command):
            program = {"python": [], "olive": ["-m", "coldpress"], "coldpress": ["-m", "coldpress"]}[command[0]]
            call = [sys.executable, *program, *command[1:]]
            done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            return done.stdout

        return folder, run

    yield enter
    left = [*Path(environment["HOME"]).glob("*"), *Path(environment["HOME"]).glob(".cache/*")]
    assert {entry.name for entry in left} <= {".cache", "huggingface"}
