"""Olive's LoRA pass at its defaults, with the steps timed: ``python olive_finetune.py REQUEST.json``, in Olive's
environment.

The request: ``model``, ``rows`` (a JSON lines file with the field ``text``), ``strategy`` (how rows become samples),
``max_steps``, ``max_seq_len``, ``target_modules``, ``out``, ``result``. The result file gets the seconds and the loss
of each step, and how many tokens a step had, padding included and not.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from olive.workflows import run

STEPS: list[dict[str, float]] = []


class Timed(transformers.TrainerCallback):
    """Notes when steps begin and end, and what the trainer logs."""

    started = 0.0

    def on_step_begin(self, args, state, control, **_):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        STEPS.append({"seconds": time.perf_counter() - self.started})

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs and STEPS:
            STEPS[-1]["loss"] = logs["loss"]


class Counts:
    """Of all batches: tokens with padding, and those that a loss counts."""

    tokens = scored = 0


def watch(trainer) -> None:
    """Have each of transformers' trainers note its steps and count its batches.

    Wherever it is imported, it is this class.
    """
    made, trained = trainer.__init__, trainer.training_step

    def init(self, *args, **options):
        made(self, *args, **options)
        self.add_callback(Timed())

    def training_step(self, model, inputs, *more, **options):
        Counts.tokens += inputs["input_ids"].numel()
        Counts.scored += int((inputs["labels"] != -100).sum())
        return trained(self, model, inputs, *more, **options)

    trainer.__init__, trainer.training_step = init, training_step


def main(file: str) -> None:
    request = json.loads(Path(file).read_text(encoding="utf-8"))
    watch(transformers.Trainer)
    data = {
        "name": "rows",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": "json", "data_files": request["rows"], "split": "train"},
        "pre_process_data_config": {
            "text_cols": "text",
            "strategy": request["strategy"],
            "max_seq_len": request["max_seq_len"],
        },
    }
    lora = {
        "type": "LoRA",
        "target_modules": request["target_modules"],
        "train_data_config": "rows",
        "training_args": {"max_steps": request["max_steps"], "logging_steps": 1},
    }
    here = {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}
    run(
        {
            "input_model": {"type": "HfModel", "model_path": request["model"], "task": "text-generation"},
            "systems": {"here": here},
            "host": "here",
            "target": "here",
            "data_configs": [data],
            "passes": {"lora": lora},
            "output_dir": request["out"],
            "cache_dir": str(Path(request["out"]).parent / "olive_cache"),
            "log_severity_level": 1,
        }
    )
    if not STEPS:
        sys.exit("Olive trained no step")
    counts = {"tokens": Counts.tokens / len(STEPS), "scored": Counts.scored / len(STEPS)}
    result = {"steps": STEPS, **counts, "threads": torch.get_num_threads()}
    Path(request["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
