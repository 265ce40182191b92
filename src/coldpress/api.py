"""The Python API: the verbs of the command line as functions, with the same names and defaults."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.jobs.store import Store
from coldpress.runs.engine import Console, Report
from coldpress.runs.engine import run as _run
from coldpress.target import Target, resolve_target
from coldpress.workflow import Running, Step, Verify, Workflow, recipes
from coldpress.workflow.calibration_data import CALIBRATING, with_data
from coldpress.workflow.file import load_workflow

_TARGET = ("device", "provider", "threads")
#: where results go when nothing else is said
OUTPUT, QUANTIZED, TUNED, PASS_OUTPUT = "models/optimized", "models/quantized", "models/finetuned", "models/run-pass"


def optimize_workflow(
    model_name_or_path: str | Path, output_path: str | Path | None = OUTPUT, **options: Any
) -> Workflow:
    """The workflow behind ``auto-opt`` and ``optimize``.

    ``options``: ``device``, ``provider``, ``threads``, ``no_verify``, ``tolerance``, ``eval_data``, ``verify_memory``
    (gigabytes), ``trust_remote_code``, ``adapter_path`` (PEFT folders), and the parameters of the pass ``press``.
    """
    return _workflow(model_name_or_path, output_path, recipes.press_recipe, options)


def _workflow(
    model: str | Path,
    output: str | Path | None,
    recipe: Callable[[dict[str, Any], Target], tuple[Step, ...]],
    options: dict[str, Any],
) -> Workflow:
    """The workflow of a recipe: the options that are not the recipe's say for what target, and how it is verified."""
    target = resolve_target(**{name: options.pop(name) for name in _TARGET if name in options})
    texts = tuple(map(str, options.pop("eval_data", ())))
    limit, memory = options.pop("tolerance", None), options.pop("verify_memory", None)
    verify = Verify(not options.pop("no_verify", False), limit, texts, memory)
    trust = bool(options.get("trust_remote_code"))
    workflow = Workflow(
        model=str(model),
        passes=recipe(options, target),
        target=target,
        output=None if output is None else str(output),
        verify=verify,
        trust_remote_code=trust,
    )
    for step in workflow.passes:
        step.make()
    return workflow


def optimize(
    model_name_or_path: str | Path,
    output_path: str | Path | None = OUTPUT,
    *,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Report:
    """Turn a model into a verified ONNX model in the folder ``output_path`` (None: leave it in the cache).

    ``options`` are those of ``coldpress optimize``: ``precision="int4"``, ``device="cpu"``, ``tolerance="0.1"``,
    ``no_verify=True``, ``block_size=32``, ... Raises ColdpressError; a model that is worse than its tolerance is
    written, and ``Report.exit_code`` is 3.
    """
    workflow = optimize_workflow(model_name_or_path, output_path, **options)
    return _run(workflow, store=Store(cache_dir), overwrite=overwrite)


auto_opt = optimize


def quantize_workflow(
    model_name_or_path: str | Path, output_path: str | Path | None = QUANTIZED, **options: Any
) -> Workflow:
    """The workflow behind ``quantize``; ``options`` as in `optimize_workflow`, with the parameters of the pass
    ``quantize``."""
    recipe = lambda given, _target: recipes.quantize_recipe(given)  # noqa: E731
    return _workflow(model_name_or_path, output_path, recipe, options)


def quantize(
    model_name_or_path: str | Path,
    output_path: str | Path | None = QUANTIZED,
    *,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Report:
    """Quantize a model's weights, calibrated, into a Hugging Face folder that transformers loads and `optimize`
    presses.

    ``options`` are those of ``coldpress quantize``: ``algorithm="best"``, ``precision="int4"``, ``group_size=32``,
    ``data_files=("rows.jsonl",)``, ``text_template="{question} {answer}"``, ... Raises ColdpressError.
    """
    workflow = quantize_workflow(model_name_or_path, output_path, **options)
    return _run(workflow, store=Store(cache_dir), overwrite=overwrite)


def finetune_workflow(
    model_name_or_path: str | Path, output_path: str | Path | None = TUNED, **options: Any
) -> Workflow:
    """The workflow behind ``finetune``; ``options`` as in `finetune`.

    Without a device it is a GPU where torch finds one.
    """
    for name in ("eval_data", "no_verify", "tolerance", "verify_memory"):
        if name in options:
            hint = "rows held out are the verdict: eval_files, eval_split or eval_dataset_size"
            raise ColdpressError(f"{name} has no effect on finetune", hint=hint)
    if "device" not in options and "provider" not in options:
        import torch

        options["device"] = "gpu" if torch.cuda.is_available() else "cpu"
    fresh, seed = options.pop("fresh", False), options.pop("seed", 0)
    recipe = lambda given, _target: recipes.finetune_recipe(given)  # noqa: E731
    workflow = _workflow(model_name_or_path, output_path, recipe, options)
    return replace(workflow, seed=seed, run=Running(clean_cache=fresh))


def finetune(
    model_name_or_path: str | Path,
    output_path: str | Path | None = TUNED,
    *,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Report:
    """Train an adapter on a float or a quantized model; ``output_path`` gets ``model`` (the base as it was) and
    ``adapter`` (PEFT's).

    ``options`` are those of ``coldpress finetune``: ``data_files=("rows.jsonl",)``, ``text_template="{question}
    {answer}"``, ``lora_r=16``, ``training_args={"max_steps": 100}``, ``fresh=True`` (do not go on from a run that was
    stopped), ... Raises ColdpressError; where the loss on rows held out did not fall, ``Report.exit_code`` is 3.
    """
    workflow = finetune_workflow(model_name_or_path, output_path, **options)
    running = replace(workflow.run, cache_dir=str(cache_dir) if cache_dir else None)
    return _run(replace(workflow, run=running), store=running.open_store(), overwrite=overwrite)


def run(
    workflow: Workflow | dict[str, Any] | str | Path, *, overwrite: bool = False, cache_dir: str | Path | None = None
) -> Report:
    """Run a workflow: an object, plain data, or a YAML or JSON file, of coldpress's own form or Olive's.

    With ``run: {log_level: 1}`` or 0 in it, finished steps are told on stderr. Keys of an Olive file that have no
    effect are logged as warnings.
    """
    checked = (
        workflow if isinstance(workflow, Workflow) else load_workflow(workflow, logging.getLogger(__name__).warning)
    )
    running = replace(checked.run, cache_dir=str(cache_dir)) if cache_dir else checked.run
    return _run(checked, store=running.open_store(), console=_console(checked), overwrite=overwrite)


def _console(workflow: Workflow) -> Console:
    if workflow.run.log_level not in (0, 1):
        return Console()
    return Console(say=lambda line: print(line, file=sys.stderr, flush=True))


def run_pass(
    pass_name: str,
    model_name_or_path: str | Path,
    output_path: str | Path | None = PASS_OUTPUT,
    *,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **parameters: Any,
) -> Report:
    """Run one pass on a model. From ONNX to ONNX the result is compared with the source; all else is only opened.

    ``parameters``: the pass's fields, and ``device``, ``provider``, ``threads``; ``verify=False`` compares nothing. For
    passes that calibrate ``data_files``, ``max_seq_len`` and the like may stand in place of ``data``.
    """
    workflow = pass_workflow(pass_name, model_name_or_path, output_path, **parameters)
    return _run(workflow, store=Store(cache_dir), overwrite=overwrite)


def pass_workflow(
    pass_name: str, model_name_or_path: str | Path, output_path: str | Path | None = PASS_OUTPUT, **parameters: Any
) -> Workflow:
    """The workflow behind ``run-pass``: one pass, nothing measured; verified where the pass asks for it, and from ONNX
    to ONNX."""
    target = resolve_target(**{key: parameters.pop(key) for key in _TARGET if key in parameters})
    part, name = parts.find("passes", pass_name), parts.file_name(pass_name)
    can_be = part.is_verified or (part.accepts == ("onnx",) and part.produces == "onnx")
    is_verified = parameters.pop("verify", True) and not parameters.pop("no_verify", False) and can_be
    return Workflow(
        model=str(model_name_or_path),
        passes=(Step(name, with_data(parameters) if name in CALIBRATING else parameters),),
        target=target,
        output=None if output_path is None else str(output_path),
        verify=Verify(is_verified),
        metrics=(),
        trust_remote_code=bool(parameters.get("trust_remote_code")),
    )


def plan(model_name_or_path: str | Path, **options: Any) -> dict[str, Any]:
    """What ``optimize`` with these options would cost: seconds, memory, disk and output bytes."""
    from coldpress.runs.forecast import plan as _plan

    return _plan(optimize_workflow(model_name_or_path, **options))


def evaluate(
    *models: str | Path, metrics: tuple[str, ...] = ("size", "perplexity"), **options: Any
) -> list[dict[str, Any]]:
    """Measure models; one mapping of metric to numbers for each. See ``coldpress evaluate``."""
    from coldpress.runs.evaluation import evaluate as _evaluate

    return _evaluate([str(model) for model in models], metrics, console=Console(), **options)
