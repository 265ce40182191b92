"""Decode and prompt speed of SmolLM2 in three runtimes, each with 4-bit models made of the same float folder.

coldpress' default and its 4-bit head in onnxruntime-genai, llama.cpp's Q4_0 and Q4_K_M by its own ``llama-bench``,
OpenVINO GenAI with NNCF's int4. A prompt of 256 tokens, then 64 tokens behind it; every turn is a fresh process, and
one answer in it is not counted. llama.cpp draws its tokens at random, the others read the same text.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.decode import NEW_TOKENS, PROMPT_TOKENS, prompt_of
from benchmarks.measure import (
    Claim,
    Options,
    Outcome,
    in_a_fresh_process,
    pinned,
    run_checked,
    spread_of_numbers,
    take_turns,
)
from benchmarks.press_smollm2 import coldpress, press, smollm2_folder

ROUNDS = 5
_REPEATS = 3
_GROUP = 64  # the largest power of two that divides SmolLM2's width
_OURS = {"coldpress": (), "coldpress 4-bit head": ("--head_bits", "4")}
_LLAMA = ("Q4_0", "Q4_K_M")
_DECODE, _PROMPT = "decode_tokens_per_second", "prompt_tokens_per_second"

Turn = Callable[[], dict[str, float]]


def run(options: Options) -> Outcome:
    """The claims about the speed of runtimes."""
    source = smollm2_folder(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        turns = {**_ours(source, Path(name), options), **_llama(source, Path(name), options)}
        turns["openvino int4"] = _openvino(source, Path(name), options)
        runs = take_turns(turns, options.rounds or ROUNDS)
    measured = {label: spread_of_numbers(found) for label, found in runs.items()}
    fastest = max(measured[label][_DECODE]["median"] for label in measured if label.startswith("llama.cpp"))
    share = measured["coldpress"][_DECODE]["median"] / fastest
    return Outcome(measured, [Claim("coldpress: decode speed over llama.cpp's faster one", share, 1.5, "higher")])


def _ours(source: Path, folder: Path, options: Options) -> dict[str, Turn]:
    turns = {}
    for label, more in _OURS.items():
        model = folder / label.replace(" ", "_")
        press(coldpress(source, None, options.threads, *more), options, model)
        asked = {"folder": str(model), "prompt": prompt_of(source), "threads": options.threads}
        turns[label] = _two_numbers(in_a_fresh_process("benchmarks.decode", asked, options))
    return turns


def _two_numbers(turn: Turn) -> Turn:
    return lambda: {name: number for name, number in turn().items() if name in (_DECODE, _PROMPT)}


def _llama(source: Path, folder: Path, options: Options) -> dict[str, Turn]:
    tools, vendor = peers.llama_tools(options), peers.llama_source(options) / "vendor" / "llama.cpp"
    whole = folder / "float.gguf"
    convert = [peers.python("llama_cpp", options), vendor / "convert_hf_to_gguf.py", source, "--outfile", whole]
    run_checked([*convert, "--outtype", "f32"])
    turns = {}
    for kind in _LLAMA:
        model = folder / f"{kind}.gguf"
        run_checked([tools / "llama-quantize", whole, model, kind, str(options.threads)])
        turns[f"llama.cpp {kind}"] = _llama_turn([tools / "llama-bench", "-m", model], options)
    return turns


def _llama_turn(bench: Sequence[str | Path], options: Options) -> Turn:
    command = [*bench, "-t", str(options.threads), "-r", str(_REPEATS), "-o", "jsonl"]
    asked = {_PROMPT: ["-p", str(PROMPT_TOKENS), "-n", "0"], _DECODE: ["-p", "0", "-n", str(NEW_TOKENS)]}
    asked[_DECODE] += ["-d", str(PROMPT_TOKENS)]
    return lambda: {name: _answer(run_checked([*command, *what]).output)["avg_ts"] for name, what in asked.items()}


def _openvino(source: Path, folder: Path, options: Options) -> Turn:
    program, model = peers.python("openvino", options), folder / "openvino"
    run_checked([program, peers.script("openvino_model"), source, model, str(_GROUP)], pinned(options.threads))
    asked: dict[str, Any] = {"folder": str(model), "prompt": prompt_of(source), "threads": options.threads}
    request = json.dumps({**asked, "new_tokens": NEW_TOKENS, "repeats": _REPEATS})
    command = [program, peers.script("openvino_speed"), request]
    return lambda: _answer(run_checked(command, pinned(options.threads)).output)


def _answer(output: str) -> dict[str, float]:
    """The JSON on the last line that is an object: llama-bench says more behind it."""
    found: dict[str, float] = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
    return found
