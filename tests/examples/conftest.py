"""An example's folder, in which its commands are run as they are typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.examples import commands


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {**os.environ, "COLDPRESS_CACHE": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def lab(environment, tmp_path):
    """A copy of an example's folder in which commands are run as they are typed."""

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

    return enter
