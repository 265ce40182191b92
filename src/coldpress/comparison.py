"""Several models, measured the same way, in one table; and interleaved, where speed is compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from coldpress import parts
from coldpress.engine import Console
from coldpress.job import Job
from coldpress.model import Model
from coldpress.sources import find_model
from coldpress.store import Store
from coldpress.systems.local import Local
from coldpress.target import Target

#: shown of a metric's numbers where a table has no room for all
_SHOWN = {
    "size": ("model_bytes", "bits_per_weight"),
    "perplexity": ("perplexity",),
    "divergence": ("kl", "top1_agreement", "perplexity", "generation_agreement"),
    "generation": ("first_token_ms", "prompt_tokens_per_second", "decode_tokens_per_second"),
    "memory": ("peak_memory_mb",),
}


def evaluate(
    models: Sequence[str],
    metrics: Sequence[str],
    *,
    source: str | None = None,
    target: Target = Target(),
    store: Store | None = None,
    console: Console = Console(),
) -> list[dict[str, Any]]:
    """Measure each model with each metric, each in a fresh process; results are kept in the store.

    Returns a mapping for each model: ``name``, and the numbers of each metric under the metric's name. ``source`` is
    what ``divergence`` compares with.
    """
    opened = [find_model(name, say=console.say) for name in models]
    original = find_model(source, say=console.say) if source else None
    known = store or Store()
    rows: list[dict[str, Any]] = []
    for name, model in zip(models, opened, strict=True):
        jobs = [Job("metric", metric, {}, model, target, original) for metric in metrics]
        measured = {job.part: dict(result.numbers) for job, result in Local().map(jobs, known, console.progress)}
        rows.append({"name": name, **measured})
    return rows


def benchmark(
    models: Sequence[str], *, rounds: int = 3, target: Target = Target(), console: Console = Console(), **settings: int
) -> list[dict[str, Any]]:
    """Generation speed of several models, taken in turns so that a machine that slows down slows all of them.

    Returns for each model ``name`` and, for each number, its median over the rounds and half its range.
    ``settings`` are the parameters of the metric ``generation``. Nothing is taken from the cache.
    """
    opened = [find_model(name, say=console.say) for name in models]
    taken: list[list[dict[str, Any]]] = [[] for _ in models]
    for turn in range(rounds):
        order = list(range(len(models)))
        for index in order if turn % 2 == 0 else reversed(order):
            taken[index].append(_timed(opened[index], target, settings, console))
    numbers = parts.find("metrics", "generation").values
    return [
        {"name": name, **{number: _spread([one[number] for one in runs]) for number in numbers}}
        for name, runs in zip(models, taken, strict=True)
    ]


def _timed(model: Model, target: Target, settings: dict[str, int], console: Console) -> dict[str, Any]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="coldpress-") as folder:  # a store of its own: never a cached time
        job = Job("metric", "generation", settings, model, target)
        [(_, result)] = Local().map([job], Store(folder), console.progress)
    return dict(result.numbers)


def _spread(values: list[float]) -> dict[str, float]:
    return {"value": statistics.median(values), "spread": (max(values) - min(values)) / 2}


def flat(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, parts.Value]]:
    """Rows and columns for a table: the numbers of several metrics side by side."""
    columns: dict[str, parts.Value] = {}
    flattened: list[dict[str, Any]] = [{"name": row["name"]} for row in rows]
    for metric in metrics:
        described = parts.find("metrics", metric).values
        for number in _SHOWN.get(metric, tuple(described)):
            columns.setdefault(number, described[number])
            for row, shown in zip(rows, flattened, strict=True):
                shown.setdefault(number, row[metric].get(number))
    return flattened, columns
