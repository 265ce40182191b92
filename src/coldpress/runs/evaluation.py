"""Several models, measured the same way, in one table; and interleaved, where speed is compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job
from coldpress.jobs.store import Store, shared
from coldpress.jobs.system import Executor
from coldpress.measuring.noise import spread, turn
from coldpress.models.model import Model
from coldpress.models.sources import find_model
from coldpress.parts import schema
from coldpress.runs.engine import Console, readable
from coldpress.target import Target
from coldpress.workflow import Measure, Place, labels_of

#: shown of a metric's numbers where a table has no room for all
_SHOWN = {
    "size": ("model_bytes", "bits_per_weight"),
    "perplexity": ("perplexity",),
    "divergence": ("kl", "top1_agreement", "perplexity", "generation_agreement"),
    "generation": ("first_token_ms", "prompt_tokens_per_second", "decode_tokens_per_second"),
    "memory": ("peak_memory_mb",),
    "latency": ("latency_p50_ms", "latency_p95_ms", "throughput_p50"),
}
_ROUNDS = 3
#: formats that are first made Hugging Face folders, which metrics read
_READABLE = ("gguf", "multimodal")


def evaluate(  # noqa: PLR0913
    models: Sequence[str],
    metrics: Sequence[str | Measure],
    *,
    source: str | None = None,
    target: Target = Target(),
    store: Store | None = None,
    console: Console = Console(),
    system: Place = Place(),
) -> list[dict[str, Any]]:
    """Measure each model with each metric, each time in a fresh process.

    Returns a mapping for each model: ``name``, and the numbers of each metric under the metric's name; of two metrics
    of a kind the second is ``latency-2``. Results are kept in the store, except for times: these are taken in turns,
    three times of each model, and are as `noise.spread` has them. ``source`` is what ``divergence`` compares with,
    ``system`` where models are measured.
    """
    measures = [Measure(metric) if isinstance(metric, str) else metric for metric in metrics]
    executor = Executor(system.make(), store or shared(), console.progress)
    opened = [find_model(name, say=console.say) for name in models]
    original = find_model(source, say=console.say) if source else None
    for measure, model in product(measures, opened):
        _check(measure, model)
    taken = [[_taken(measure, model, executor, target) for model in opened] for measure in measures]
    compared = readable(original, executor, target) if original else None
    rows: list[dict[str, Any]] = [{"name": name} for name in models]
    for label, measure, ones in zip(labels_of(measures), measures, taken, strict=True):
        metric = measure.make()
        jobs = [Job("metric", measure.type, schema.plain(metric), model, target, compared) for model in ones]
        if metric.is_timed:
            found = in_turns(jobs, _ROUNDS, measure.executor(executor))
        else:
            found = [dict(result.numbers) for result in measure.executor(executor).results(jobs)]
        for row, numbers in zip(rows, found, strict=True):
            row[label] = numbers
    return rows


def benchmark(  # noqa: PLR0913
    models: Sequence[str],
    *,
    metric: str = "generation",
    rounds: int = _ROUNDS,
    target: Target = Target(),
    store: Store | None = None,
    console: Console = Console(),
    system: Place = Place(),
    **settings: Any,
) -> list[dict[str, Any]]:
    """Speed of several models by a metric that takes times, ``generation`` or ``latency``, whose parameters are
    ``settings``.

    Returns for each model ``name``, and each number as `noise.spread` has it. Nothing is taken from the cache.
    """
    executor = Executor(system.make(), store or shared(), console.progress)
    measure = Measure(metric, settings)
    made = measure.make()
    if not made.is_timed:
        timed = [name for name in parts.names("metrics") if parts.find("metrics", name).is_timed]
        raise ColdpressError(f"'{metric}' takes no times", hint=f"use {' or '.join(timed)}, or coldpress evaluate")
    opened = [find_model(name, say=console.say) for name in models]
    for model in opened:
        _check(measure, model)
    jobs = [
        Job("metric", metric, schema.plain(made), _taken(measure, model, executor, target), target) for model in opened
    ]
    found = in_turns(jobs, rounds, executor)
    return [
        {"name": name, **{number: numbers[number] for number in made.values if number in numbers}}
        for name, numbers in zip(models, found, strict=True)
    ]


def in_turns(jobs: Sequence[Job], rounds: int, executor: Executor) -> list[dict[str, Any]]:
    """The numbers of each job, measured in turns, so that a machine that slows down slows all of them.

    In every round each job runs once in a fresh process, in every other round in the opposite order; nothing is taken
    from the store. Numbers are as `noise.spread` has them, so that `noise.is_tie` can compare their ``rounds``; other
    details are those of the last round.
    """
    taken: list[list[dict[str, Any]]] = [[] for _ in jobs]
    for number in range(rounds):
        for index in turn(range(len(jobs)), number):
            taken[index].append(dict(executor.measured_anew(jobs[index]).numbers))
    return [
        {name: spread([one[name] for one in runs]) if _is_number(value) else value for name, value in runs[-1].items()}
        for runs in taken
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(measure: Measure, model: Model) -> None:
    """Raise ColdpressError unless the metric can measure the model, or what `readable` makes of it."""
    measure.check(model)
    accepted = parts.find("metrics", measure.type).accepts
    if model.format in accepted or (model.format in _READABLE and "hf" in accepted):
        return
    name = model.provenance.source.name
    raise ColdpressError(
        f"{measure.type} takes {' or '.join(accepted)}, but {name} is {model.format}",
        hint=f"press it first: coldpress auto-opt {name}" if "onnx" in accepted else "leave that metric out",
    )


def _taken(measure: Measure, model: Model, executor: Executor, target: Target) -> Model:
    """The model in a format that the metric takes."""
    takes_it = model.format in parts.find("metrics", measure.type).accepts
    return model if takes_it else readable(model, executor, target)


def flat(
    rows: Sequence[dict[str, Any]], metrics: Sequence[str | Measure]
) -> tuple[list[dict[str, Any]], dict[str, parts.Value]]:
    """Rows and columns for a table: the numbers of several metrics side by side, those that were measured."""
    measures = [Measure(metric) if isinstance(metric, str) else metric for metric in metrics]
    columns: dict[str, parts.Value] = {}
    flattened: list[dict[str, Any]] = [{"name": row["name"]} for row in rows]
    for label, measure in zip(labels_of(measures), measures, strict=True):
        described = measure.make().values
        measured = [name for name in described if any(name in row[label] for row in rows)]
        for number in _SHOWN.get(measure.type, measured):
            column = number if number not in columns else f"{label} {number}"
            columns[column] = described[number]
            for row, shown in zip(rows, flattened, strict=True):
                shown[column] = row[label].get(number)
    return flattened, columns
