"""What the pages print is typed: every command and every program of them, in a copy of the sources, as it stands there.

The name of the model stands for a tiny one in the hub's cache, so that a page takes a minute. It is random and loses
much, so exit code 3 is one that a command may have. What installs is tested in tests/test_installation.py, the pages of
the examples and of the lab in tests/examples, workflow files in tests/contracts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import commands

ROOT = Path(__file__).parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAGES = ("README.md", "docs/index.md", "docs/python.md", "docs/fine-tuning.md", "docs/adapters.md")
PROGRAM = """#!/bin/bash
{python} -m coldpress "$@"
status=$?
[ $status -eq 3 ] || exit $status
"""
_COMMIT = "0" * 40
INSTALLS = ("pip", "git", "make", "uv", "cd")


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of the blocks to be typed, in order; of one with prompts, what stands behind these."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(console|bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(language, _typed(block)) for language, block in found]


def _typed(block: str) -> str:
    if "$ " not in re.findall(r"^..", block, re.MULTILINE):
        return block
    return "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE))


def named_model(home: Path, folder: Path) -> None:
    """Put a model into a hub cache under the name that the pages use."""
    repository = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / _COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(_COMMIT)


@pytest.fixture
def typist(tmp_path, tiny_model):
    """Runs a block in a copy of the sources whose commands are ours."""
    folder, programs = tmp_path / "sources", tmp_path / "programs"
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("models"))
    named_model(tmp_path / "home", tiny_model)
    programs.mkdir()
    for name in ("coldpress", "olive"):
        (programs / name).write_text(PROGRAM.format(python=sys.executable))
        (programs / name).chmod(0o755)
    skipped = "\n".join(f"{name}() {{ :; }}" for name in INSTALLS)
    places = {"HF_HOME": str(tmp_path / "home"), "COLDPRESS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **places, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def run(language: str, block: str) -> None:
        shell = ["bash", "-e", "-c", f"{skipped}\n{block}"]
        done = subprocess.run(
            shell if language != "python" else [sys.executable, "-c", block],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    return run


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_typed(page, typist):
    for language, block in blocks(page):
        typist(language, block)


@pytest.mark.parametrize("page", [*PAGES, "docs/lab.md", "docs/workflows.md", "docs/data-and-metrics.md"])
def test_nothing_is_left_to_guess(page):
    """No dots for what one should know, no rows that are not shipped, and SmolLM2's template for SmolLM2."""
    typed = "\n".join(block for language, block in blocks(page) if language != "python")
    assert "..." not in typed and "rows.jsonl" not in typed
    for template in re.findall(r'--text_template "([^"]*)"', typed):
        own = commands.template("travel", "With SmolLM2")
        assert template == own or "<|" not in template


def test_the_lab_prints_the_commands_of_its_example():
    example = [[part.removeprefix("./") for part in one] for one in commands.of_page("travel", "With SmolLM2")]
    printed = [
        commands.parsed(block)
        for _, block in blocks("docs/lab.md")
        if block.startswith(("olive quantize", "olive fine"))
    ]
    for [command] in printed:
        assert sorted(command) in [sorted(one) for one in example]
