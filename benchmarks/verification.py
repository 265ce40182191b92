"""Reading a source as the reference of a verification: loaded by transformers, and streamed by coldpress.

Time, and memory.

SmolLM2 once as it is unpacked, in float32, and once in bfloat16, which is cast while it runs. And a model of 3.8
billion random weights in bfloat16: as transformers loads it, and as it is read where it does not fit, streamed after a
part was compared. Streaming alone is what a verification did before anything was compared. Of the large model there is
one round, on fewer windows: reading counts for more.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import press_phi_shape
from benchmarks.measure import Claim, Options, Outcome, in_a_fresh_process, spread_of_numbers, take_turns
from benchmarks.press_smollm2 import smollm2_folder

_ROUNDS, _WINDOWS, _TOKENS = 3, 8, 256
_LARGE_ROUNDS, _LARGE_WINDOWS = 1, 2
_MAY_COST = 1.3
#: before anything was compared
_ALONE = "coldpress"
_WHOLE, _PART = "transformers", "coldpress after a part"


def run(options: Options) -> Outcome:
    """The claims about the cost of a reference that reads files with other code than the press."""
    folders = {"float32": smollm2_folder(options)}
    folders["bfloat16"] = _in_bfloat16(folders["float32"], options.scratch / "smollm2-bfloat16")
    turns = {
        f"{by}, {dtype}": _turn(folder, by, _WINDOWS, options)
        for dtype, folder in folders.items()
        for by in (_WHOLE, _ALONE)
    }
    runs = take_turns(turns, options.rounds or _ROUNDS)
    layers = options.layers or press_phi_shape.LAYERS
    large = f"{layers} layers of the 3.8B shape"
    with press_phi_shape.random_checkpoint(layers, options, press_phi_shape.TOKENIZER_VOCABULARY) as folder:
        turns = {f"{by}, {large}": _turn(folder, by, _LARGE_WINDOWS, options) for by in (_WHOLE, _PART, _ALONE)}
        runs |= take_turns(turns, options.rounds or _LARGE_ROUNDS)
    measured = {name: spread_of_numbers(turns) for name, turns in runs.items()}
    claims = [claim for what in (*folders, large) for claim in _claims(measured, what)]
    return Outcome(measured, claims)


def _claims(measured: Mapping[str, Any], what: str) -> list[Claim]:
    """What each other way of reading takes, in units of what streaming alone takes."""

    def ratio(by: str, key: str) -> float:
        one, other = (measured[f"{way}, {what}"][key]["median"] for way in (by, _ALONE))
        return float(one / other)

    return [
        Claim(f"{what}, {by}: {named} over that of streaming alone", ratio(by, key), _MAY_COST)
        for by in (_WHOLE, _PART)
        if f"{by}, {what}" in measured
        for named, key in (("processor time", "cpu_s"), ("peak anonymous memory", "peak_anonymous_mb"))
    ]


def _turn(folder: Path, by: str, windows: int, options: Options) -> Any:
    request = {"folder": str(folder), "by": by, "windows": windows}
    return in_a_fresh_process("benchmarks.verification", request, options)


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


def _read(folder: Path, by: str, count: int) -> dict[str, float]:
    """Load a reference and let it score the windows of a verification."""
    from coldpress.data.texts import heldout
    from coldpress.networks.referee import compare_part, reference_of
    from coldpress.networks.reference import Reference

    started, used = time.perf_counter(), time.process_time()
    windows = [window for _, window in heldout.named_windows(folder, _TOKENS, count, ())]
    reference = reference_of(folder)[0] if by == _WHOLE else Reference(folder)
    if by == _PART:
        compare_part(folder, reference)
    for _ in reference.logits(windows):
        pass
    return {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - used}


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(_read(Path(request["folder"]), request["by"], request["windows"])))
