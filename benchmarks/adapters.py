"""What LoRA slots cost on SmolLM2 in int4, with no adapter active and with one of rank 16, and how long a switch takes.

Contenders are pressed alike: the base without slots, the base with slots for every linear layer (the most there can be)
and for query and value only (PEFT's usual choice), each idle and with an adapter. Turns are fresh processes, one after
the other. The adapters are random: what they say does not matter for time.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode import prompt_of
from benchmarks.measure import Claim, Options, Outcome, in_a_fresh_process, spread_of_numbers, take_turns
from benchmarks.press_smollm2 import coldpress, press, smollm2_folder

ROUNDS = 7
RANK = 16
_NEW_TOKENS, _REPEATS, _SWITCHES = 64, 3, 20
_EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TARGETS = {"all": _EVERY, "qv": ("q_proj", "v_proj")}


def run(options: Options) -> Outcome:
    """The claims about slots."""
    source = smollm2_folder(options)
    prompt = prompt_of(source)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)

        def in_turn(model: str, adapter: str | None) -> Callable[[], dict[str, float]]:
            request = {"folder": str(folder / model), "adapter": adapter, "prompt": prompt, "threads": options.threads}
            return in_a_fresh_process("benchmarks.adapters", request, options)

        press(coldpress(source, "kquant", options.threads), options, folder / "base")
        speakers = {"base": in_turn("base", None)}
        for label, targets in _TARGETS.items():
            for one in ("one", "two"):
                write_adapter(source, folder / label / one, targets)
            paths = [str(folder / label / one) for one in ("one", "two")]
            command = coldpress(source, "kquant", options.threads, "--adapter_path", *paths)
            press(command, options, folder / f"slots_{label}")
            speakers[f"slots {label}, idle"] = in_turn(f"slots_{label}/model", None)
            speakers[f"slots {label}, active"] = in_turn(f"slots_{label}/model", "one")
        measured = {
            label: spread_of_numbers(runs) for label, runs in take_turns(speakers, options.rounds or ROUNDS).items()
        }
    return Outcome(measured, _claims(measured))


def _claims(measured: dict[str, Any]) -> list[Claim]:
    def slower(label: str) -> float:
        speed = "decode_tokens_per_second"
        return 1 - float(measured[label][speed]["median"] / measured["base"][speed]["median"])

    limits = {"idle": 0.08, "active": 0.15}
    claims = [
        Claim(f"slots for {label}, {state}: share of decode speed lost", slower(f"slots {label}, {state}"), limit)
        for label in _TARGETS
        for state, limit in limits.items()
    ]
    switch = float(measured["slots all, active"]["switch_ms"]["median"])
    return [*claims, Claim("switching adapters, ms", switch, 50.0)]


def write_adapter(
    base: Path, folder: Path, targets: tuple[str, ...], rank: int = RANK, seed: int = 0, scale: float = 0.01
) -> None:
    """A random PEFT adapter for some layers of a checkpoint, by default of a size that keeps its text sane."""
    from safetensors.numpy import save_file

    from coldpress.models.checkpoint import Checkpoint

    random, tensors = np.random.default_rng(seed), {}
    for name, span in Checkpoint(base).tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith(targets):
            rows, columns = span.shape
            key = f"base_model.model.{module}"
            tensors[f"{key}.lora_A.weight"] = random.standard_normal((rank, columns), np.float32) / columns**0.5
            tensors[f"{key}.lora_B.weight"] = random.standard_normal((rows, rank), np.float32) * np.float32(scale)
    folder.mkdir(parents=True)
    save_file({key: tensor.astype(np.float32) for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def _speak(request: dict[str, Any]) -> dict[str, float]:
    """Decode speed of one model in this process, with an adapter if one is named, and the time of a switch."""
    import onnxruntime_genai as og

    folder, prompt = Path(request["folder"]), np.asarray(request["prompt"], dtype=np.int32)
    config = og.Config(str(folder))
    session = {"intra_op_num_threads": request["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    adapters = og.Adapters(model)
    for file in folder.glob("*.onnx_adapter"):
        adapters.load(str(file), file.stem)

    def generator(adapter: str | None) -> Any:
        params = og.GeneratorParams(model)
        length = len(prompt) + _NEW_TOKENS
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        made = og.Generator(model, params)
        if adapter:
            made.set_active_adapter(adapters, adapter)
        return made

    speeds = []
    for repeat in range(_REPEATS + 1):
        made = generator(request["adapter"])
        made.append_tokens(prompt)
        made.generate_next_token()
        started = time.perf_counter()
        for _ in range(_NEW_TOKENS - 1):
            made.generate_next_token()
        speeds += [(_NEW_TOKENS - 1) / (time.perf_counter() - started)] if repeat else []
    numbers = {"decode_tokens_per_second": statistics.median(speeds)}
    if request["adapter"]:
        numbers["switch_ms"] = _switch_ms(generator)
    return numbers


def _switch_ms(generator: Callable[[str], Any]) -> float:
    """From the wish for another adapter until it can be fed: a generator of its own with the adapter put on."""
    times = []
    for number in range(_SWITCHES):
        started = time.perf_counter()
        generator(("one", "two")[number % 2])
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    print(json.dumps(_speak(json.loads(sys.argv[1]))))
