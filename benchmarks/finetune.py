"""Fine-tuning SmolLM2 with LoRA: the time of a step and the loss, against Olive at its defaults.

Two workloads, in both of which both sides train on the same rows, as many of them a step, and on the same layers with
the same rank and learning rate:

- ``rows``: each row a sample, as rows of questions and answers are trained on. Olive fills each up to 1024 tokens.
- ``joined``: rows joined into windows of 1024 tokens, which is what Olive's command line does. Nothing is filled up
  there, so that what is left are checkpointing, logits and the cast of weights.

Steps are timed inside the trainers, without loading and saving; the first is left out. The loss of a step is the mean
over its tokens in both. Olive's samples come in another order, so losses are compared as means over the last half of
the steps.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.measure import Claim, Options, Outcome, pinned, run_checked, spread, take_turns
from benchmarks.press_smollm2 import smollm2_folder

ROUNDS = 2
_STEPS = {"rows": 8, "joined": 4}
_ROWS, _ROWS_IN_STEP, _WINDOW = 64, 8, 1024
#: what PEFT gives an adapter in a Llama when nobody says, and so Olive
_TARGETS = ("q_proj", "v_proj")
_OLIVES_RANK = 64
_STRATEGIES = {"rows": ("line-by-line", "line_by_line"), "joined": ("join", "join")}
_PLACES = ("the market", "a quiet lake", "the old bridge", "the harbour", "a tower on the hill", "the town museum")
_DOINGS = (
    "walk along the water",
    "look at the boats",
    "eat what is in season",
    "rest in the shade",
    "listen to the bells",
)


def run(options: Options) -> Outcome:
    """The claims about fine-tuning."""
    folder = smollm2_folder(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        work = Path(name)
        contenders = {
            f"{who} {load}": lambda who=who, load=load: trained(who, load, folder, work, options)
            for load in _STEPS
            for who in ("olive", "coldpress")
        }
        runs = take_turns(contenders, options.rounds or ROUNDS)
    measured = {name: summary(found) for name, found in runs.items()}
    return Outcome(measured, [claim for load in _STEPS for claim in claims(measured, load)], [_REMARK])


_REMARK = "Olive's rows are joined at its command line, and padded to 1024 tokens where a config trains row by row."


def claims(measured: dict[str, Any], load: str) -> list[Claim]:
    olive, ours = measured[f"olive {load}"], measured[f"coldpress {load}"]
    times = olive["step_s"]["median"] / ours["step_s"]["median"]
    last = ours["last_loss"]["median"] / olive["last_loss"]["median"]
    return [
        Claim(f"{load}: times faster a step than Olive", times, {"rows": 8.0, "joined": 1.5}[load], "higher"),
        Claim(f"{load}: loss of the last half of the steps as a share of Olive's", last, 1.05),
    ]


def rows_file(work: Path, load: str) -> Path:
    """Questions and answers, as texts of 40 to 160 tokens; of those that are joined enough for all windows."""
    file = work / f"{load}.jsonl"
    if not file.exists():
        picked = random.Random(0)
        count = _ROWS if load == "rows" else _ROWS * 12
        lines = (json.dumps({"text": _text(picked, number)}) + "\n" for number in range(count))
        file.write_text("".join(lines), encoding="utf-8")
    return file


def _text(picked: random.Random, number: int) -> str:
    advice = " ".join(
        f"Go to {picked.choice(_PLACES)} and {picked.choice(_DOINGS)}." for _ in range(picked.randint(3, 12))
    )
    return (
        f"<|im_start|>user\nWhat is there to see in town {number}?<|im_end|>\n<|im_start|>assistant\n{advice}<|im_end|>"
    )


def trained(who: str, load: str, model: Path, work: Path, options: Options) -> dict[str, Any]:
    """Seconds and losses of the steps of one run."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        make = _olive if who == "olive" else _coldpress
        return make(load, model, rows_file(work, load), folder, options)


def _olive(load: str, model: Path, rows: Path, folder: Path, options: Options) -> dict[str, Any]:
    request = {
        "model": str(model),
        "rows": str(rows),
        "strategy": _STRATEGIES[load][0],
        "max_steps": _STEPS[load],
        "max_seq_len": _WINDOW,
        "target_modules": list(_TARGETS),
        "out": str(folder / "out"),
        "result": str(folder / "result.json"),
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    command = [peers.python("olive", options), peers.script("olive_finetune"), folder / "request.json"]
    used = run_checked(command, {**pinned(options.threads), "OLIVE_DISABLE_TELEMETRY": "1"}, folder)
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "step_s": [step["seconds"] for step in found["steps"]],
        "losses": [step["loss"] for step in found["steps"]],
        "tokens": found["tokens"],
        "scored": found["scored"],
        "used": used,
    }


def _coldpress(load: str, model: Path, rows: Path, folder: Path, options: Options) -> dict[str, Any]:
    """Through a workflow, as joined windows are no option of ``finetune``; all else as ``finetune`` has it."""
    rule = {"strategy": _STRATEGIES[load][1], "max_seq_len": _WINDOW, "data_files": [str(rows)], "text_cols": ["text"]}
    parameters = {
        "train_data": {"type": "text_corpus", "parameters": rule},
        "eval_dataset_size": 0,
        "lora_r": _OLIVES_RANK,
        "target_modules": list(_TARGETS),
        "training_args": {"max_steps": _STEPS[load], "per_device_train_batch_size": _ROWS_IN_STEP},
    }
    workflow = {
        "model": str(model),
        "passes": [{"type": "lora", "parameters": parameters}],
        "output": str(folder / "out"),
        "target": {"threads": options.threads},
    }
    (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    command = [sys.executable, "-m", "coldpress", "run", "--config", folder / "workflow.json", "--json"]
    used = run_checked(command, {**pinned(options.threads), "COLDPRESS_CACHE": str(folder / "cache")}, folder)
    told = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))["tuning"]
    scored = told["scored_tokens"] / told["steps"]
    losses = [loss for _, loss in told["loss"]]
    return {"step_s": told["step_seconds"], "losses": losses, "tokens": scored, "scored": scored, "used": used}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and all values. The first step warms up."""
    return {
        "step_s": spread([statistics.median(one["step_s"][1:]) for one in runs]),
        "last_loss": spread([statistics.fmean(one["losses"][len(one["losses"]) // 2 :]) for one in runs]),
        "losses": [one["losses"] for one in runs],
        "tokens_a_step": runs[0]["tokens"],
        "scored_tokens_a_step": runs[0]["scored"],
        "wall_s": spread([one["used"].wall_s for one in runs]),
        "peak_anonymous_mb": spread([one["used"].peak_anonymous_mb for one in runs]),
        "others_cpu_s": spread([one["used"].others_cpu_s for one in runs]),
    }
