"""Reading SmolLM2 as the reference of a verification: loaded by transformers, and streamed by coldpress. Time, and memory.

Once as it is unpacked, in float32, and once in bfloat16, which is cast while it runs.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Claim, Options, Outcome, in_a_fresh_process, spread_of_numbers, take_turns
from benchmarks.press_smollm2 import smollm2_folder

_ROUNDS, _WINDOWS, _TOKENS = 3, 8, 256
_MAY_COST = 1.3


def run(options: Options) -> Outcome:
    """The claims about the cost of a reference that reads files with other code than the press."""
    folders = {"float32": smollm2_folder(options)}
    folders["bfloat16"] = _in_bfloat16(folders["float32"], options.scratch / "smollm2-bfloat16")
    contenders = {
        f"{by}, {dtype}": partial(_turn, folder, by, options)
        for dtype, folder in folders.items()
        for by in ("transformers", "coldpress")
    }
    runs = take_turns(contenders, options.rounds or _ROUNDS)
    measured = {name: spread_of_numbers(turns) for name, turns in runs.items()}
    claims = [
        Claim(f"{what} of transformers' reading over coldpress', {dtype}", _ratio(measured, dtype, key), _MAY_COST)
        for dtype in folders
        for what, key in (("processor time", "cpu_s"), ("peak anonymous memory", "peak_anonymous_mb"))
    ]
    return Outcome(measured, claims)


def _turn(folder: Path, by: str, options: Options) -> dict[str, float]:
    return in_a_fresh_process("benchmarks.verification", {"folder": str(folder), "by": by}, options)()


def _ratio(measured: dict[str, Any], dtype: str, key: str) -> float:
    one, other = (measured[f"{by}, {dtype}"][key]["median"] for by in ("transformers", "coldpress"))
    return float(one / other)


def _in_bfloat16(source: Path, folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    from coldpress.models.quantized_folder import copy_other_files

    if folder.is_dir():
        return folder
    folder.mkdir()
    copy_other_files(source, folder)
    (folder / "config.json").write_text((source / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _read(folder: Path, by: str) -> dict[str, float]:
    """Load a reference and let it score the windows of a verification."""
    from coldpress.data.texts import heldout
    from coldpress.networks.referee import reference_of
    from coldpress.networks.reference import Reference

    started, used = time.perf_counter(), time.process_time()
    windows = [window for _, window in heldout.named_windows(folder, _TOKENS, _WINDOWS, ())]
    reference = reference_of(folder)[0] if by == "transformers" else Reference(folder)
    for _ in reference.logits(windows):
        pass
    return {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - used}


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(_read(Path(request["folder"]), request["by"])))
