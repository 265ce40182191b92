"""Calibration of SmolLM2 alone and beside a program that keeps one processor busy, with threads that wait in several
ways.

A contender is a way to wait, which a user can set, too: libgomp's own (a spin of 300,000 rounds, some milliseconds to
tens of them), sleeping at once, ours. A neighbour that never rests is the third thread on two processors: two thirds of
the machine are left, so 1.5 times the time is fair, and what exceeds it was spun away.

The neighbour is a process of this benchmark on the same processors. The machine should be quiet otherwise:
``others_cpu_s`` of a turn tells, from which the neighbour's own time is taken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from benchmarks.measure import Claim, Options, Outcome, pinned, run_checked, spread_of_numbers, take_turns
from benchmarks.press_smollm2 import smollm2_folder

ROUNDS = 3
_WINDOWS, _TOKENS = 16, 256
#: the libraries' own ways to wait, and what of ours stands beside them
WAYS: Mapping[str, Mapping[str, str]] = {
    "ours": {},
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1,000 rounds": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
}
_FAIR, _SLOWER_ALONE = 1.7, 1.1


def run(options: Options) -> Outcome:
    """The claims about threads that wait."""
    if said := [name for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME") if name in os.environ]:
        raise RuntimeError(f"{', '.join(said)} would hold for all contenders: unset it")
    contenders = {
        f"{name}, {place}": lambda way=way, place=place: calibrated(way, place == "beside a busy one", options)
        for name, way in WAYS.items()
        for place in ("alone", "beside a busy one")
    }
    turns = take_turns(contenders, options.rounds or ROUNDS)
    measured: dict[str, Any] = {name: spread_of_numbers(runs) for name, runs in turns.items()}

    def wall(name: str) -> float:
        return float(measured[name]["wall_s"]["median"])

    claims = [
        Claim(
            "a busy neighbour makes a calibration longer by this factor",
            wall("ours, beside a busy one") / wall("ours, alone"),
            _FAIR,
        ),
        Claim(
            "alone, the time as a share of that with libgomp's default",
            wall("ours, alone") / wall("libgomp's default, alone"),
            _SLOWER_ALONE,
        ),
        Claim(
            "beside a busy one, the time as a share of that with libgomp's default",
            wall("ours, beside a busy one") / wall("libgomp's default, beside a busy one"),
            1.0,
        ),
    ]
    return Outcome({"windows": _WINDOWS, "tokens": _TOKENS, "contenders": measured}, claims)


def calibrated(way: Mapping[str, str], is_busy: bool, options: Options) -> dict[str, float]:
    """``coldpress quantize --algorithm gptq`` with an empty cache: what it took."""
    source, folder = smollm2_folder(options), options.scratch / "neighbours"
    shutil.rmtree(folder, ignore_errors=True)
    size = ["--max_seq_len", str(_TOKENS), "--num_samples", str(_WINDOWS), "--threads", str(options.threads)]
    command = [sys.executable, "-m", "coldpress", "quantize", "-m", source, "-o", folder / "out", "--no_verify"]
    environment = {**pinned(options.threads), **way, "COLDPRESS_CACHE": str(folder / "cache")}
    with neighbour() if is_busy else nullcontext(lambda: 0.0) as spent:
        used = run_checked([*command, "--algorithm", "gptq", *size], environment)
        others_s = used.others_cpu_s - spent()
    shutil.rmtree(folder)
    return {"wall_s": used.wall_s, "cpu_s": used.cpu_s, "others_cpu_s": max(0.0, others_s)}


@contextmanager
def neighbour() -> Iterator[Callable[[], float]]:
    """A process that never rests; gives the processor time in seconds that it has used so far."""
    import psutil

    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    watched = psutil.Process(child.pid)
    before = watched.cpu_times()
    try:
        yield lambda: watched.cpu_times().user + watched.cpu_times().system - before.user - before.system
    finally:
        child.kill()
        child.wait()
