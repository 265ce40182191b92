"""The verdict on a pressed model: is it, within its tolerance, the model it was made from?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job
from coldpress.jobs.system import Executor
from coldpress.measuring.tolerance import TOLERANCES, Tolerance, judge, judge_adapter, limits_broken, parse_tolerance
from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of
from coldpress.models.provenance import HeldOutLoss
from coldpress.models.tokenizers.tokenizer import has_tokenizer, writes_text
from coldpress.parts.schema import plain
from coldpress.workflow import Verify, Workflow

VERIFIED, WORSE, UNVERIFIED = "verified", "worse than tolerance", "unverified"
TUNED = "fine-tuned"
_SHOWN = 5


def judges() -> dict[str, int]:
    """The versions of the metrics that a verdict rests on: with another, a verdict is no longer that of today."""
    return {name: parts.find("metrics", name).version for name in _JUDGES}


_JUDGES = ("divergence", "adapter_divergence", "graph_divergence")


@dataclass(frozen=True)
class Verdict:
    """``reasons`` say which limit was broken, or why nothing was compared."""

    verdict: str
    reasons: list[str] = field(default_factory=list)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Tolerance | None = None
    seconds: float = 0.0


def tolerance_of(precision: str | None, spec: str | None) -> Tolerance:
    """The limits for a precision, with those that the user set put over them."""
    standard = TOLERANCES.get(precision or "int4", TOLERANCES["int4"])
    wanted = plain(parse_tolerance(spec)) if spec else {}
    return replace(standard, **{name: limit for name, limit in wanted.items() if limit is not None})


def check_request(request: Verify, source: Model | Planned) -> None:
    """Raise ColdpressError for limits that cannot be read, files that do not exist, and a source that cannot be asked
    anything.

    All of that before any work.
    """
    tolerance_of("fp32", request.tolerance)
    if request.max_memory is not None and not request.max_memory >= 0:
        raise ColdpressError(
            f"verify: max_memory is {request.max_memory:g} GB", hint="it is a number of gigabytes, from 0 on"
        )
    for file in request.data:
        if not Path(file).is_file():
            raise ColdpressError(f"text to verify on: '{file}' does not exist")
    folder = settings_of(source)
    if request.enabled and source.format in ("hf", "adapter") and folder is not None:
        _check_tokenizer(folder)


def _check_tokenizer(folder: Path) -> None:
    """A folder that is on this machine, of a model that generates text, has a tokenizer."""
    if writes_text(folder) and not has_tokenizer(folder):
        raise ColdpressError(
            f"{folder} has no tokenizer (tokenizer.json, or files to make it of), so the result cannot be compared on"
            " text",
            hint="put the tokenizer's files there, or turn verification off with --no_verify",
        )


@dataclass(frozen=True)
class Origin:
    """What a result is compared with: the model it was made from, and, if it has adapters, the base with these.

    ``merged``: where ``source`` is a base with its adapter merged into it, the two before that.
    """

    source: Model
    attached: Model | None = None
    merged: Model | None = None


def verify(model: Model, origin: Origin, workflow: Workflow, executor: Executor) -> Verdict:
    """Compare a pressed model, and each of its adapters, with its source in a fresh process, as ``workflow.verify``
    asks.

    A source that was merged is itself compared with PEFT's network.
    """
    if not workflow.verify.enabled:
        return Verdict(UNVERIFIED, ["verification was turned off"])
    found = _against_source(model, origin, workflow, executor)
    if origin.merged is None or not origin.source.provenance.generates:
        return found
    merging = _against_peft(origin.source, origin.merged, workflow, executor)
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


def _against_peft(merged: Model, before: Model, workflow: Workflow, executor: Executor) -> Verdict:
    """Compare a merged model with PEFT's network of its base and the adapter."""
    tolerance = tolerance_of(merged.provenance.precision, workflow.verify.tolerance)
    result = executor.result(Job("metric", "divergence", _how(workflow), merged, workflow.target, before))
    reasons = [f"merged, against PEFT's network: {why}" for why in judge(result.numbers, tolerance)]
    return Verdict(WORSE if reasons else VERIFIED, reasons, dict(result.numbers), tolerance, result.seconds)


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
    tolerance = tolerance_of(model.provenance.precision, request.tolerance)
    if model.format == "onnx" and not target.is_here:
        return Verdict(
            UNVERIFIED, [f"{target.provider} is not installed here, so the model could not be run"], {}, tolerance
        )
    if not model.provenance.generates:
        return Verdict(UNVERIFIED, ["only models that generate text are compared with their source yet"], {}, tolerance)
    if source.format != "hf":
        return Verdict(UNVERIFIED, ["only models made from a Hugging Face model are compared with their source yet"])
    job = Job("metric", "divergence", _how(workflow), model, target, source)
    result = executor.result(job)
    reasons, numbers, seconds = judge(result.numbers, tolerance), dict(result.numbers), result.seconds
    if limits_broken(result.numbers, tolerance):
        noted = _worst_noted(model)
        how = {name: value for name, value in job.parameters.items() if name != "files"}
        reasons.append(noted or _worst_layer(replace(job, part="worst_layer", parameters=how), executor))
    if origin.attached is not None:
        job = replace(job, part="adapter_divergence", source=origin.attached)
        result = executor.result(job)
        numbers["adapters"], seconds = result.numbers["adapters"], seconds + result.seconds
        reasons += [why for found in numbers["adapters"] for why in judge_adapter(found, tolerance)]
    return Verdict(WORSE if reasons else VERIFIED, reasons, numbers, tolerance, seconds)


def is_compared_as_text(origin: Origin, model: Model) -> bool:
    """Whether the result is run and compared with its Hugging Face source, as models that generate text are."""
    return origin.source.format == "hf" and model.provenance.generates


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
