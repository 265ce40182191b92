"""GPTQ of SmolLM2-135M with 128 windows of 512 tokens: time and memory against Olive's GPTQ on the same token ids.

Both start from the same float folder and end with a folder of 4-bit codes in groups of 32, asymmetric; embedding and
head stay float, and nothing is verified. The tokens are from the Brown corpus, of which speed does not depend.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from benchmarks import peers
from benchmarks.measure import Claim, Options, Outcome, Usage, pinned, run_checked, spread_of_usage, take_turns
from benchmarks.press_smollm2 import smollm2_folder
from benchmarks.quality_sources import brown_whole

WINDOWS, TOKENS = 128, 512
_TIME, _MEMORY = 0.15, 1 / 3
_QUIET = {"CI": "true", "OLIVE_DISABLE_TELEMETRY": "1"}


def run(options: Options) -> Outcome:
    """The claims about time and memory of a calibration."""
    source, text = smollm2_folder(options), brown_whole(options)
    ids = options.scratch / "calibrate_ids.npy"
    np.save(ids, _ids(source, text))
    contenders = {
        "coldpress gptq": lambda: coldpress_gptq(source, text, options),
        "olive gptq": lambda: _olive(source, ids, options),
    }
    turns = take_turns(contenders, options.rounds or 2)
    measured = {name: spread_of_usage(runs) for name, runs in turns.items()}
    ours, theirs = measured["coldpress gptq"], measured["olive gptq"]
    claims = [
        Claim(f"coldpress gptq: {what} as a share of Olive's", ours[key]["median"] / theirs[key]["median"], limit)
        for what, key, limit in (("wall time", "wall_s", _TIME), ("anonymous memory", "peak_anonymous_mb", _MEMORY))
    ]
    return Outcome({"windows": WINDOWS, "tokens": TOKENS, "contenders": measured}, claims)


def _ids(source: Path, text: Path) -> np.ndarray:
    """The windows that ``coldpress quantize`` cuts from the text, ``[windows, tokens]``."""
    from coldpress.data.batches.calibration import windows
    from coldpress.models.model import Model
    from coldpress.parts import Context, DataSource

    named = {"data_name": "text", "data_files": (str(text),), "chat_template": False}
    wanted = DataSource("calibration_text", {**named, "max_seq_len": TOKENS, "max_samples": WINDOWS})
    found = windows(wanted, Model(source, "hf", ""), Context(Path())).ids
    if found.shape != (WINDOWS, TOKENS):
        raise RuntimeError(f"{text} gives {found.shape[0]} windows of {found.shape[1]} tokens")
    return found


def coldpress_gptq(source: Path, text: Path, options: Options) -> Usage:
    """``coldpress quantize --algorithm gptq`` with an empty cache and an empty output folder."""
    folder = options.scratch / "coldpress_gptq"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = ["--data_name", "text", "--data_files", text, "--no_use_chat_template"]
    size = ["--max_seq_len", str(TOKENS), "--num_samples", str(WINDOWS), "--threads", str(options.threads)]
    command = [sys.executable, "-m", "coldpress", "quantize", "-m", source, "-o", folder / "out", "--no_verify"]
    environment = {**pinned(options.threads), "COLDPRESS_CACHE": str(folder / "cache")}
    used = run_checked([*command, "--algorithm", "gptq", "--asymmetric", *data, *size], environment)
    shutil.rmtree(folder)
    return used


def _olive(source: Path, ids: Path, options: Options) -> Usage:
    folder = options.scratch / "olive_gptq"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = [peers.python("olive", options), peers.script("olive_gptq")]
    used = run_checked([*program, source, ids, folder / "out", "gptq"], {**pinned(options.threads), **_QUIET}, folder)
    shutil.rmtree(folder)
    return used
