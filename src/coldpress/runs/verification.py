"""The verdict on a pressed model: is it, within its tolerance, the model it was made from?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job
from coldpress.jobs.system import Executor
from coldpress.models.model import MODULES, Model
from coldpress.models.planned import Planned, settings_of
from coldpress.models.provenance import HeldOutLoss
from coldpress.models.sources import nearby
from coldpress.parts.task import Task, find_task, parse_tolerance, task_of
from coldpress.workflow import Verify, Workflow

VERIFIED, WORSE, UNVERIFIED = "verified", "worse than tolerance", "unverified"
TUNED = "fine-tuned"
_SHOWN = 5


def judges() -> dict[str, int]:
    """The versions of the metrics and tasks that a verdict rests on: with another, a verdict is no longer that of
    today."""
    tasks = {name: find_task(name) for name in parts.names("tasks")}
    metrics = {one for task in tasks.values() for one in (task.metric, task.adapter_metric) if one}
    found = {name: parts.find("metrics", name).version for name in sorted({*metrics, "graph_divergence"})}
    return {**found, **{f"task {name}": task.version for name, task in tasks.items()}}


@dataclass(frozen=True)
class Verdict:
    """``reasons`` say which limit was broken, or why nothing was compared. ``limits``: of the task, by number."""

    verdict: str
    reasons: list[str] = field(default_factory=list)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        return "; ".join([self.verdict, *self.reasons])


def check_request(request: Verify, source: Model | Planned) -> None:
    """Raise ColdpressError for limits that cannot be read, files that do not exist, and a source that cannot be asked
    anything.

    All of that before any work.
    """
    task = task_of(source)
    if task is not None:
        task.limits(None, request.tolerance)
    elif request.tolerance:
        parse_tolerance(request.tolerance)
    if request.max_memory is not None and not request.max_memory >= 0:
        raise ColdpressError(
            f"verify: max_memory is {request.max_memory:g} GB", hint="it is a number of gigabytes, from 0 on"
        )
    for file in request.data:
        if not Path(file).is_file():
            raise ColdpressError(f"text to verify on: '{file}' does not exist", hint=nearby(Path(file)))
    if request.enabled and task is not None:
        task.check(source)


@dataclass(frozen=True)
class Origin:
    """What a result is compared with: the model it was made from, and, if it has adapters, the base with these.

    ``merged``: where ``source`` is a base with its adapter merged into it, the two before that. ``loading``: how a
    module is loaded, the fields of `coldpress.graphs.capture.module.ModuleOptions`.
    """

    source: Model
    attached: Model | None = None
    merged: Model | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)


def verify(model: Model, origin: Origin, workflow: Workflow, executor: Executor) -> Verdict:
    """Compare a pressed model, and each of its adapters, with its source in a fresh process, as ``workflow.verify``
    asks.

    A source that was merged is itself compared with PEFT's network.
    """
    if not workflow.verify.enabled:
        return Verdict(UNVERIFIED, ["verification was turned off"])
    found = _against_source(model, origin, workflow, executor)
    task = task_of(origin.source) if origin.merged is not None else None
    if origin.merged is None or task is None or task.adapter_metric is None:
        return found
    merging = _against_peft(task, origin.source, origin.merged, workflow, executor)
    if model.key == origin.source.key:
        is_tuned = found.verdict in (TUNED, WORSE) and merging.verdict == VERIFIED
        return replace(merging, verdict=found.verdict, reasons=found.reasons) if is_tuned else merging
    return replace(
        found,
        verdict=WORSE if merging.verdict == WORSE else found.verdict,
        reasons=[*merging.reasons, *found.reasons],
        numbers={**found.numbers, "merging": {name: merging.numbers[name] for name in _OF_MERGING}},
        seconds=found.seconds + merging.seconds,
    )


_OF_MERGING = ("kl", "top1_agreement")


def _against_peft(task: Task, merged: Model, before: Model, workflow: Workflow, executor: Executor) -> Verdict:
    """Compare a merged model with PEFT's network of its base and the adapter."""
    limits = task.limits(merged.provenance.precision, workflow.verify.tolerance)
    result = executor.result(Job("metric", task.metric, _how(workflow), merged, workflow.target, before))
    reasons = [f"merged, against PEFT's network: {why}" for why in task.judge(result.numbers, limits)]
    return Verdict(WORSE if reasons else VERIFIED, reasons, dict(result.numbers), limits, result.seconds)


def _how(workflow: Workflow) -> dict[str, Any]:
    """The parameters of a comparison with the source."""
    request, trust = workflow.verify, workflow.trust_remote_code
    memory = {} if request.max_memory is None else {"max_memory": request.max_memory}
    return {"files": list(request.data), **memory, "trust_remote_code": trust}


def _against_source(model: Model, origin: Origin, workflow: Workflow, executor: Executor) -> Verdict:
    source, request, target = origin.source, workflow.verify, workflow.target
    is_source = model.key == source.key or (origin.attached is not None and model.key == origin.attached.key)
    if is_source:
        tuning = model.provenance.tuning
        return Verdict(UNVERIFIED, [_NOTHING_ELSE]) if tuning is None else _tuned(model, tuning.held_out)
    task = task_of(source)
    limits = task.limits(model.provenance.precision, request.tolerance) if task else {}
    unknown = ""
    if model.format == "onnx" and not target.is_here:
        unknown = f"{target.provider} is not installed here, so the model could not be run"
    elif source.format not in ("hf", *MODULES):
        unknown = "only models made from a Hugging Face model, or a module, are compared with their source yet"
    elif task is None:
        unknown = f"there is no task for {_class_of(source)} yet, so nobody knows how to compare it with its source"
    elif origin.attached is not None and task.adapter_metric is None:
        unknown = f"adapters of models for {task.title} are not compared with PEFT's yet"
    if unknown or task is None:
        return Verdict(UNVERIFIED, [unknown], {}, limits)
    how = origin.loading if source.format in MODULES else _how(workflow)
    job = Job("metric", task.metric, {**how, **task.asked}, model, target, source)
    result = executor.result(job)
    numbers, seconds, reasons = dict(result.numbers), result.seconds, []
    if task.layer_metric is not None and task.broken(numbers, limits):
        how = {name: value for name, value in job.parameters.items() if name != "files"}
        worst = replace(job, part=task.layer_metric, parameters=how)
        reasons.append(_worst_noted(model) or _worst_layer(worst, executor))
    if origin.attached is not None and task.adapter_metric is not None:
        result = executor.result(replace(job, part=task.adapter_metric, source=origin.attached))
        numbers["adapters"], seconds = result.numbers["adapters"], seconds + result.seconds
    reasons = [*task.judge(numbers, limits), *reasons]
    return Verdict(WORSE if reasons else VERIFIED, reasons, numbers, limits, seconds)


def is_compared(origin: Origin, model: Model) -> bool:
    """Whether the result is run and compared with its Hugging Face source or its module, by the task of that."""
    return origin.source.format in ("hf", *MODULES) and task_of(origin.source) is not None


def _class_of(source: Model) -> str:
    folder = settings_of(source)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    return str((config.get("architectures") or [config.get("model_type")])[0])


_NOTHING_ELSE = "it is the model that a later result would be compared with, and is compared with nothing itself"


def _tuned(model: Model, held_out: HeldOutLoss) -> Verdict:
    """A model that was trained answers otherwise than before; what counts is whether it does better on rows held
    out."""
    before, after = held_out.loss_before, held_out.loss_after
    if before is None or after is None:
        return Verdict(UNVERIFIED, ["no rows were held out, so nobody knows whether training made it better"])
    change = f"from {before:.3f} to {after:.3f} on {held_out.rows} rows that were held out"
    change += "" if model.format == "adapter" else ", before the adapter was merged"
    if not after < before:
        return Verdict(WORSE, [f"training did not help: the loss went {change}"])
    return Verdict(TUNED, [f"the loss fell by {1 - after / before:.0%}, {change}"])


def _worst_noted(model: Model) -> str | None:
    """The layer that rounding changed most, where the layers' outputs cannot be compared with the source's; else None.

    They cannot where something was scaled or rotated within the network, and need not where that was measured.
    """
    known = model.provenance
    layers = known.calibration.layers if known.calibration else known.layers if known.rotation else ()
    outputs = {layer.name: layer.output_error for layer in layers if layer.output_error is not None}
    weights = {layer.name: layer.relative_error for layer in layers}
    for errors, what in ((outputs, "output"), (weights, "weights")):
        if errors:
            worst = max(errors, key=lambda name: errors[name])
            return f"the worst layer is {worst}: rounding changed its {what} by {errors[worst]:.1%}"
    return None


def _worst_layer(job: Job, executor: Executor) -> str:
    try:
        result = executor.result(job)
    except ColdpressError as error:
        return f"the worst layer could not be found: {error.message}"
    if names := result.numbers.get("misread"):
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return (
            f"coldpress reads {', '.join(names[:_SHOWN])}{more} otherwise than transformers does: a fault of coldpress,"
            " please report it"
        )
    return f"the worst layer is {result.numbers['name']}: its output differs by {result.numbers['relative_error']:.1%}"
