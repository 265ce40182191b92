"""Speed of SmolLM2's int4 and int8 models in onnxruntime-genai, and their distance from the source, against the model
builder's.

Every turn is a fresh process that opens a model with a fixed number of threads, answers once without the clock, then
several times with it. Quality is measured once, because it does not vary. The contender ``equal bits`` has the
builder's encoding: 4 bits, symmetric, block 32, for the tied embedding and head too. SmolLM2's weights come from a
4-bit file (Q4_1: a scale and a float minimum for every 32), so its distances say little about models that were never
quantized.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Claim, Options, Outcome, in_a_fresh_process, pinned, spread_of_numbers, take_turns
from benchmarks.press_smollm2 import builder, coldpress, press, smollm2_folder

ROUNDS = 5
PROMPT_TOKENS, NEW_TOKENS = 256, 64
_REPEATS = 3
_MODELS = {
    "coldpress int4": [],
    "coldpress equal bits": ["--symmetric", "--head_bits", "4", "--embedding_bits", "4"],
    "coldpress symmetric": ["--symmetric"],
    "coldpress 4-bit head": ["--head_bits", "4"],
    "coldpress int8": ["--precision", "int8"],
}
_SPEEDS = ("decode_tokens_per_second", "prompt_tokens_per_second", "first_token_ms")


def run(options: Options) -> Outcome:
    """The claims about speed and quality."""
    source = smollm2_folder(options)
    prompt = prompt_of(source)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        models = _models(source, Path(name), options)
        same = {"prompt": prompt, "threads": options.threads}
        speakers = {
            label: in_a_fresh_process("benchmarks.decode", {"folder": str(folder), **same}, options)
            for label, folder in models.items()
        }
        turns = take_turns(speakers, options.rounds or ROUNDS)
        measured = {label: spread_of_numbers(runs) for label, runs in turns.items()}
        for label, quality in _quality(source, models, options).items():
            measured[label].update(quality)
    return Outcome(measured, _claims(measured))


def _claims(measured: dict[str, Any]) -> list[Claim]:
    def share(label: str, number: str) -> float:
        ours, theirs = measured[label][number], measured["builder int4"][number]
        return float(ours["median"] / theirs["median"] if isinstance(ours, dict) else ours / theirs)

    default, equal = "coldpress int4", "coldpress equal bits"
    decode = "decode_tokens_per_second"
    return [
        Claim(f"{default}: decode speed over the builder's", share(default, decode), 0.97, "higher"),
        Claim(f"{default}: divergence (KL) over the builder's", share(default, "kl"), 0.7),
        Claim(f"{default}: time to the first token over the builder's", share(default, "first_token_ms"), 1.0),
        Claim(f"{equal}: decode speed over the builder's", share(equal, decode), 1.0, "higher"),
        Claim(f"{equal}: bytes over the builder's", share(equal, "model_bytes"), 1.0),
        Claim(f"{equal}: time to the first token over the builder's", share(equal, "first_token_ms"), 1.0),
    ]


def _models(source: Path, folder: Path, options: Options) -> dict[str, Path]:
    """Build what is compared; each ends in a folder of its own."""
    commands = {"builder int4": builder(source)}
    for label, more in _MODELS.items():
        commands[label] = coldpress(source, "kquant", options.threads, *more)
    models = {label: folder / label.replace(" ", "_") for label in commands}
    for label, command in commands.items():
        press(command, options, models[label])
    return models


def prompt_of(source: Path) -> list[int]:
    """Token ids of held-out text; the same for every contender, as they share the tokenizer."""
    from coldpress.data.texts import heldout

    return [int(token) for token in heldout.windows(source, PROMPT_TOKENS, 1)[0]]


def _quality(source: Path, models: dict[str, Path], options: Options) -> dict[str, dict[str, float]]:
    """Size and distance from the source of each model, as ``coldpress evaluate`` measures them."""
    folders = [str(folder) for folder in models.values()]
    command = [sys.executable, "-m", "coldpress", "evaluate", *folders, "--source", str(source), "--json"]
    metrics = ["--metric", "size", "--metric", "divergence", "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory(dir=options.scratch) as cache:
        environment = {**pinned(options.threads), "COLDPRESS_CACHE": cache}
        rows = json.loads(_stdout([*command, *metrics], environment))
    wanted = ("kl", "kl_p99", "top1_agreement", "perplexity", "source_perplexity", "compared_tokens")
    return {
        label: {"model_bytes": row["size"]["model_bytes"], **{name: row["divergence"][name] for name in wanted}}
        for label, row in zip(models, rows, strict=True)
    }


def _stdout(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _speak(folder: str, prompt: list[int], threads: int) -> dict[str, float]:
    """Medians over the timed answers of this process."""
    import onnxruntime_genai as og

    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    answers = [_answer(og, model, prompt) for _ in range(_REPEATS + 1)][1:]
    return {name: statistics.median([answer[name] for answer in answers]) for name in _SPEEDS}


def _answer(og: Any, model: Any, prompt: list[int]) -> dict[str, float]:
    """Times of one greedy answer; stop tokens do not end it."""
    length = len(prompt) + NEW_TOKENS
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, num_beams=1, max_length=length, min_length=length)
    generator = og.Generator(model, params)
    started = time.perf_counter()
    generator.append_tokens(prompt)
    read = time.perf_counter()
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(NEW_TOKENS - 1):
        generator.generate_next_token()
    ended = time.perf_counter()
    return {
        "decode_tokens_per_second": (NEW_TOKENS - 1) / (ended - first),
        "prompt_tokens_per_second": len(prompt) / (read - started),
        "first_token_ms": (first - started) * 1e3,
    }


if __name__ == "__main__":
    print(json.dumps(_speak(**json.loads(sys.argv[1]))))
