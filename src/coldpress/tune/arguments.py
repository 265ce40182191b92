"""TrainingArguments of transformers from what a user says: checked, older names understood, and what is not the user's
to say."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean

#: as Olive has them, where transformers' own are for training whole models
USUAL = {"learning_rate": 2e-4, "lr_scheduler_type": "constant", "report_to": "none"}
#: names of before -> names of today, with the same values
_RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "warmup_ratio": "warmup_steps",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}
#: its name of before, and of today
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")
_NEEDLESS = (
    ("group_by_length", True),
    ("train_sampling_strategy", "group_by_length"),
    ("train_sampling_strategy", "batch_rebalance"),
)
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
#: what is not the user's to say here, and what to do instead
#: the least that a number of a training may be; max_steps may be -1, transformers' word for none
_LEAST = {"learning_rate": 0.0, "max_steps": 1, "num_train_epochs": 0.0, "warmup_steps": 0, "weight_decay": 0.0}
_REFUSED = {
    "output_dir": "the result goes to --output_path; checkpoints lie in the cache, where the next run finds them",
    "overwrite_output_dir": "--fresh forgets the checkpoints of a run that was stopped, --overwrite replaces a result",
    "logging_dir": "the loss curve is in report.json; report_to sends it elsewhere",
    "do_train": "finetune always trains",
    "do_eval": "eval_dataset_size holds rows out",
    "do_predict": "use evaluate on the result",
    "push_to_hub": "upload the adapter folder with `hf upload` when it is done",
    "bf16_full_eval": "it is evaluated in the type that it is trained in",
    "fp16_full_eval": "it is evaluated in the type that it is trained in",
    "include_num_input_tokens_seen": "the report counts the tokens",
    "prediction_loss_only": "the loss is all that is measured while training; use evaluate on the result",
    "use_liger_kernel": "logits never exist as a whole here",
    "fp16_backend": "use torch_dtype",
    "fp16_opt_level": "use torch_dtype",
    "half_precision_backend": "use torch_dtype",
    "save_safetensors": "adapters are always written as safetensors",
    "local_rank": "start it with accelerate launch",
}


@dataclass(frozen=True)
class Arguments:
    """``given``: what the user says, by today's names. ``dtype``: the type that bf16 or fp16 ask for.

    ``remarks``: what is said of arguments that have no effect. Made by `read_arguments`.
    """

    given: Mapping[str, Any]
    dtype: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def checkpointing(self) -> bool | None:
        """Whether activations are to be computed twice; None where nobody says."""
        said = [self.given[name] for name in CHECKPOINTING if name in self.given]
        return bool(said[-1]) if said else None

    @property
    def saves_by_time(self) -> bool:
        """Whether nobody says when checkpoints are written."""
        return not {"save_strategy", "save_steps"} & self.given.keys()

    @property
    def rows_in_step(self) -> int:
        """The rows that one device takes for one step."""
        return int(self.given.get("per_device_train_batch_size", 8)) * int(
            self.given.get("gradient_accumulation_steps", 1)
        )

    def make(self, folder: Path, seed: int, device: str, dtype: Any) -> Any:
        """TrainingArguments. Rows of a step come all at once, and are run in parts as memory allows."""
        import torch
        from transformers import TrainingArguments

        ours = {
            "output_dir": str(folder),
            "remove_unused_columns": False,
            "disable_tqdm": True,
            "gradient_accumulation_steps": 1,
            "per_device_train_batch_size": self.rows_in_step,
            "use_cpu": device == "cpu",
            "fp16": dtype == torch.float16,
        }
        usual = {**USUAL, "seed": seed, "logging_steps": 1, "save_strategy": "no", "save_total_limit": 2}
        if device == "cpu":
            usual["dataloader_pin_memory"] = False
        if "save_steps" in self.given:
            usual["save_strategy"] = "steps"
        if "eval_steps" in self.given:
            usual["eval_strategy"] = "steps"
        try:
            made = TrainingArguments(**{**usual, **self.given, **ours})
        except (ValueError, TypeError, ImportError) as error:
            raise ColdpressError(f"training_args: {_first_line(error)}") from error
        made._n_gpu = min(made.n_gpu, 1)  # several GPUs are for several processes: accelerate launch
        return made


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """Check names and types of TrainingArguments. ColdpressError for one that does not exist, with the closest one."""
    hints = _fields()
    found: dict[str, Any] = {}
    remarks = []
    for name, said in given.items():
        today, value = _today(name, said, hints)
        if (today, value) in _NEEDLESS:
            remarks.append(f"{name} had no effect: rows are packed, so that there is no padding to save.")
            continue
        if today in _REFUSED and value not in (None, False, "no"):
            raise ColdpressError(f"training_args.{name} is not taken", hint=_REFUSED[today])
        if today in _REFUSED:
            continue
        if today not in hints:
            raise ColdpressError(f"there is no training argument '{name}'", hint=did_you_mean(name, hints))
        found[today] = _checked(f"training_args.{name}", value, hints[today])
        is_none = today == "max_steps" and found[today] == -1
        if today in _LEAST and not found[today] >= _LEAST[today] and not is_none:
            raise ColdpressError(
                f"training_args.{name} is {found[today]:g}; at least {_LEAST[today]:g} is needed",
                hint=f"leave out --{name} for what is usual",
            )
    wanted = {name: found.pop(name, None) for name in _DTYPES}
    return Arguments(
        found, next((_DTYPES[name] for name, is_wanted in wanted.items() if is_wanted), None), tuple(remarks)
    )


def parse_flags(words: Sequence[str], others: Sequence[str] = ()) -> dict[str, Any]:
    """Flags of the command line as TrainingArguments: ``--name value``, ``--name=value``, or ``--name`` alone for true.

    ``others``: options that there are besides, for the hint.
    """
    hints = _fields()
    found: dict[str, Any] = {}
    place = 0
    while place < len(words):
        flag, has_value, value = words[place].partition("=")
        place += 1
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            raise ColdpressError(f"what is '{flag}'? It belongs to no option")
        if not has_value and place < len(words) and not words[place].startswith("--"):
            value, has_value, place = words[place], "=", place + 1
        today, _ = _today(name, value, hints)
        if today not in hints and today not in (*_REFUSED, "group_by_length"):
            raise ColdpressError(
                f"there is no option '{flag}', and no training argument of that name",
                hint=did_you_mean(flag, [*others, *(f"--{name}" for name in hints)]),
            )
        found[name] = _parsed(f"--{name}", value if has_value else "true", hints.get(today, bool | str))
    return found


def _today(name: str, value: Any, hints: Mapping[str, Any]) -> tuple[str, Any]:
    """The name of today of an argument, and its value."""
    if name in hints:
        return name, value
    if name == "group_by_length" and value in (False, "false", "False"):
        return "train_sampling_strategy", "random"
    if name == "adafactor" and value in (True, "true", "True"):
        return "optim", "adafactor"
    return _RENAMED.get(name, name), value


def _fields() -> dict[str, Any]:
    """The arguments that transformers takes, and their types."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {one.name: hints.get(one.name, Any) for one in dataclasses.fields(TrainingArguments) if one.init}


def _options(hint: Any) -> list[Any]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [typing.get_origin(one) or one for one in (typing.get_args(hint) if is_union else [hint])]


def _checked(where: str, value: Any, hint: Any) -> Any:
    """The value, a whole number as a float where that is wanted. ColdpressError for one of another type."""
    options = _options(hint)
    plain = [one for one in options if one in (bool, int, float, str, dict, list)]
    if not plain or value is None or type(value) in plain:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and float in plain:
        return float(value)
    names = " or ".join(one.__name__ for one in plain)
    raise ColdpressError(f"{where} is {value!r}; it takes {names}")


def _parsed(where: str, text: str, hint: Any) -> Any:
    """A word of the command line as the first of the types that it can be."""
    options = _options(hint)
    readers = ((bool, _boolean), (int, int), (float, float), (dict, json.loads), (list, json.loads))
    for kind, read in readers:
        if kind in options:
            try:
                return read(text)
            except ValueError:
                continue
    if str in options or not any(kind in options for kind, _ in readers):
        return text
    names = " or ".join(kind.__name__ for kind, _ in readers if kind in options)
    raise ColdpressError(f"{where}: '{text}' is not what it takes", hint=f"give it a {names}")


def _boolean(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
