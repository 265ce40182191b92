"""Work that is killed at any moment, again and again, ends with the bytes that it would have had."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.end_to_end.test_same_bytes import OF_THE_RUN
from tests.passes.conftest import write_text

OF_A_SEARCH = ("optuna.journal", "best.yaml")
CALIBRATED = ("--max_seq_len", "32", "--num_samples", "6", "--group_size", "16")
WORKFLOW = """
model: {model}
passes:
- type: press
  parameters: {{precision: int4, algorithm: {{choice: [rtn, kquant]}}, block_size: {{choice: [32, 64]}}}}
metrics:
- type: size
  goals: {{model_bytes: {{priority: 1}}}}
search: {{sampler: grid, keep: 2}}
verify: {{enabled: false}}
"""


def commands(model: Path, folder: Path) -> Mapping[str, Sequence[str]]:
    (folder / "workflow.yaml").write_text(WORKFLOW.format(model=model))
    text = write_text(folder / "text.txt")
    return {
        "quantize": (
            "quantize",
            "-m",
            str(model),
            "--algorithm",
            "best",
            "--data_files",
            str(text),
            *CALIBRATED,
            "--no_verify",
        ),
        "press": ("auto-opt", "-m", str(model), "--no_verify"),
        "search": ("run", "--config", str(folder / "workflow.yaml")),
    }


@pytest.mark.full
@pytest.mark.parametrize("what", ["quantize", "press", "search"])
def test_a_killed_run_goes_on_to_the_same_bytes(what, tiny_model, tmp_path):
    """kill -9 at moments that chance picks, until a run gets through."""
    words = commands(tiny_model, tmp_path)[what]

    def started(name: str) -> subprocess.Popen[bytes]:
        places = ("--output_path", str(tmp_path / name), "--cache_dir", str(tmp_path / f"{name}-cache"))
        return subprocess.Popen(
            [sys.executable, "-m", "coldpress", *words, *places],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    begun = time.monotonic()
    assert started("whole").wait() == 0
    whole_s, chance, kills = time.monotonic() - begun, random.Random(3), 0
    while True:
        run = started("killed")
        try:
            assert run.wait(whole_s * chance.uniform(0.3, 0.95) if kills < 6 else None) == 0
            break
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
    assert kills
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def files(folder: Path) -> dict[str, bytes]:
    """All that belongs to the model, by its place."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in (*OF_THE_RUN, *OF_A_SEARCH)
    }
