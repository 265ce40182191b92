"""Tasks of EleutherAI's lm-evaluation-harness, with the model as its backend.

Tasks are those that the harness brings, whose data it fetches from the Hugging Face hub, or your own: YAML files in the
folder ``task_path``, with data beside them (``dataset_path: json``, ``dataset_kwargs: {data_files: ...}``), which need
no network. Numbers are called ``TASK/NUMBER``; a number without a task, such as ``acc``, is the mean over the tasks
that give it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from coldpress.data.batches.loader import folder_of
from coldpress.data.texts.tokenization import pretrained_tokenizer
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.measuring.inference import open_scorer, open_speaker
from coldpress.models.model import Model
from coldpress.models.onnx_folder import read_genai_config
from coldpress.parts import Context, Metric, Value, option

_HIGHER = ("acc", "acc_norm", "exact_match", "f1", "mcc", "bleu", "chrf")
_LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter")
_LENGTH = 2048


@dataclass(frozen=True)
class LmEval(Metric):
    """The tasks' own numbers, and ``samples``, how many were asked in all."""

    tasks: tuple[str, ...] = option("names of tasks", ())
    task_path: str | None = option("folder with tasks of one's own, as YAML files", None)
    limit: int | float | None = option("at most so many samples of each task; below 1: that share of them", None)
    num_fewshot: int | None = option("examples before each question; left out: as the task says", None)
    apply_chat_template: bool = option("put questions into the model's chat template", False)
    system_instruction: str | None = option("system message before every question", None)
    fewshot_as_multiturn: bool = option("examples as turns of a chat, with apply_chat_template", False)
    max_gen_toks: int | None = option("tokens of an answer at most; left out: as the task says", None)
    max_length: int | None = option("tokens of context; left out: the model's, at most 2048", None)
    bootstrap_iters: int = option(
        "repetitions for the standard errors of numbers that are no means; 0: no standard errors", 0
    )
    trust_remote_code: bool = option("run model code from a Hugging Face folder", False)

    values: ClassVar[Mapping[str, Value]] = {
        **{name: Value("higher") for name in _HIGHER},
        **{name: Value("lower") for name in _LOWER},
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf")
    reads: ClassVar[tuple[str, ...]] = ("task_path",)
    needs: ClassVar[tuple[str, ...]] = ("lm_eval",)
    quick: ClassVar[Mapping[str, Any]] = {"limit": 8}

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit >= 1 and self.limit != int(self.limit):
            raise ColdpressError(
                f"limit: {self.limit:g} is neither a whole number nor a share", hint="such as 100, or 0.05"
            )
        of_tasks = {f"{task}/{name}": value for task in self.tasks for name, value in type(self).values.items()}
        object.__setattr__(self, "values", {**type(self).values, **of_tasks})

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        from lm_eval.evaluator import simple_evaluate

        from coldpress.measuring.harness import Harness

        if not self.tasks:
            raise ColdpressError("lm_eval needs the names of tasks", hint="tasks: [lambada_openai], for example")
        manager = _manager(self.tasks, self.task_path)
        found = simple_evaluate(
            model=Harness(self._voice(model, ctx), ctx.progress),
            tasks=list(self.tasks),
            task_manager=manager,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            apply_chat_template=self.apply_chat_template,
            system_instruction=self.system_instruction,
            fewshot_as_multiturn=self.fewshot_as_multiturn,
            gen_kwargs=None if self.max_gen_toks is None else {"max_gen_toks": self.max_gen_toks},
            bootstrap_iters=self.bootstrap_iters,
            log_samples=False,
            random_seed=ctx.seed,
            numpy_random_seed=ctx.seed,
            torch_random_seed=ctx.seed,
            fewshot_random_seed=ctx.seed,
        )
        assert found is not None  # only processes beside the first get nothing
        return {**_numbers(found["results"]), "samples": _samples(found)}

    def _voice(self, model: Model, ctx: Context) -> Any:
        from coldpress.measuring.harness import Voice

        return Voice(
            pretrained_tokenizer(folder_of(model)),
            open_scorer(model, ctx.target, self.trust_remote_code),
            partial(open_speaker, model, ctx.target, self.trust_remote_code),
            self.max_length or min(_context(model), _LENGTH),
        )


def _manager(tasks: tuple[str, ...], task_path: str | None) -> Any:
    """The harness's index of tasks; its own hundreds are looked through only if they are asked for."""
    from lm_eval.tasks import TaskManager

    if task_path is not None and not Path(task_path).expanduser().is_dir():
        raise ColdpressError(
            f"there is no folder {task_path} with tasks", hint=f"the working directory is {Path.cwd()}"
        )
    own = TaskManager(include_path=task_path, include_defaults=False) if task_path else None
    if own is not None and all(task in own.all_tasks for task in tasks):
        return own
    every = TaskManager(include_path=task_path)
    for task in tasks:
        if task not in every.all_tasks:
            raise ColdpressError(f"lm_eval: there is no task '{task}'", hint=did_you_mean(task, every.all_tasks))
    return every


def _context(model: Model) -> int:
    """How many tokens the model takes."""
    length = read_genai_config(folder_of(model)).get("model", {}).get("context_length")
    file = folder_of(model) / "config.json"
    if length is None and file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        length = config.get("max_position_embeddings") or config.get("n_positions")
    return int(length or _LENGTH)


def _numbers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """``acc,none`` of a task as ``TASK/acc``; a filter that has a name stays in it."""
    found: dict[str, float] = {}
    means: dict[str, list[float]] = {}
    for task, numbers in results.items():
        for key, value in numbers.items():
            name, _, chosen = key.partition(",")
            if not chosen or not isinstance(value, int | float):
                continue
            label = name if chosen == "none" else f"{name},{chosen}"
            found[f"{task}/{label}"] = float(value)
            if not name.endswith("_stderr"):
                means.setdefault(name, []).append(float(value))
    return {**{name: statistics.fmean(values) for name, values in means.items()}, **found}


def _samples(found: Mapping[str, Any]) -> int:
    return sum(int(counts["effective"]) for counts in found.get("n-samples", {}).values())
