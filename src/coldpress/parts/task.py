"""What a kind of model is asked, and by which numbers a model is compared with its source.

A task is one file in ``tasks/``. Verification, the report and the model card ask it, so that none of them knows kinds
of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from coldpress import parts
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of

#: precisions that limits are for, the closest first
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
#: the limit of a graph made from a graph, which any tolerance may set beside those of the task
RELATIVE = "relative"
_FORMATS = {"gguf": "text_generation", "multimodal": "text_generation"}


@dataclass(frozen=True)
class Criterion:
    """One number of a comparison with the source.

    ``title`` and ``meaning``: what a report calls it; without a title it is not shown. ``says``: what a verdict calls
    it. ``limits``: how far it may go, by precision: at most where lower is better, at least where higher is; empty for
    a number that is only told. ``why``: the reason for these limits. ``names``: what a command line may call it, too.
    ``is_share``: shown in percent. ``may_lack``: whether there are models that it cannot be measured of.
    """

    name: str
    title: str
    meaning: str
    better: Literal["lower", "higher"]
    says: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    names: tuple[str, ...] = ()
    is_share: bool = False
    may_lack: bool = False

    def broken(self, value: float | None, limit: float) -> str:
        """The sentence for a broken limit; "" for one that is kept. A value that is no number (NaN) breaks it."""
        if value is None:
            return "" if self.may_lack else f"{self.says} was not measured (limit {limit:g})"
        if self.better == "lower" and not value <= limit:
            return f"{self.says} is {value:.4g}, above the limit {limit:g}"
        if self.better == "higher" and not value >= limit:
            return f"{self.says} is {value:.4g}, below the limit {limit:g}"
        return ""


class Task:
    """What a kind of model is asked.

    ``pipeline``: what model hubs call it. ``loader``: the class of transformers that loads such a model. ``classes``:
    how the names of the classes end that are for it. ``runtime``: the package that runs the result. ``criteria``: the
    numbers of a comparison; a tolerance without a name sets the first, one in percent that called ``percent``.

    ``metric`` compares a model with its source, ``adapter_metric`` adapters with PEFT's, ``layer_metric`` finds the
    layer that is furthest off. ``metrics``: what is measured of a finished model beside its size. ``labelled``: the
    kind of data with labels for it.
    """

    title: ClassVar[str] = ""
    pipeline: ClassVar[str] = ""
    loader: ClassVar[str] = ""
    classes: ClassVar[tuple[str, ...]] = ()
    runtime: ClassVar[str] = "onnxruntime"
    criteria: ClassVar[tuple[Criterion, ...]] = ()
    percent: ClassVar[str | None] = None
    metric: ClassVar[str] = ""
    adapter_metric: ClassVar[str | None] = None
    layer_metric: ClassVar[str | None] = None
    metrics: ClassVar[tuple[str, ...]] = ()
    labelled: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, ...]] = ("transformers",)
    version: ClassVar[int] = 1

    def check(self, source: Model | Planned) -> None:
        """Raise ColdpressError for a source that cannot be asked anything; before any work."""

    def measured(self, model: Model) -> tuple[str, ...]:
        """The metrics that a finished model on this machine is measured by, beside its size."""
        return self.metrics

    def limits(self, precision: str | None, asked: str | None) -> dict[str, float]:
        """The limits for a precision by the names of criteria, with those that a user asked for put over them."""
        limits = {one.name: one.limits[precision or "int4"] for one in self.criteria if one.limits}
        return limits | (self._named(asked) if asked else {})

    def _named(self, asked: str) -> dict[str, float]:
        first = next(one.name for one in self.criteria if one.limits)
        known = {name: one.name for one in self.criteria if one.limits for name in (one.name, *one.names)}
        known |= {RELATIVE: RELATIVE, "": first} | ({"%": self.percent} if self.percent else {})
        found = {}
        for name, limit in parse_tolerance(asked).items():
            if name == "%" and not self.percent:
                raise ColdpressError(
                    f"a tolerance in percent, '{asked}', says nothing about {self.title}", hint=f"write {first}=0.1"
                )
            if name not in known:
                raise ColdpressError(f"unknown tolerance '{name}' in '{asked}'", hint=did_you_mean(name, known))
            found[known[name]] = 1 + limit / 100 if name == "%" else limit
        return found

    def broken(self, numbers: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
        """One sentence for each limit that the numbers of ``metric`` break."""
        judged = [one for one in self.criteria if one.name in limits]
        return [why for one in judged if (why := one.broken(numbers.get(one.name), limits[one.name]))]

    def judge(self, numbers: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
        """All that is wrong with a model, a sentence each; nothing means that it is verified."""
        return self.broken(numbers, limits)


def parse_tolerance(text: str) -> dict[str, float]:
    """The limits of a command line by the names they have there: ``kl=0.1,ppl=1.05``.

    ``0.1`` alone has the name "", ``5%`` the name "%". Raises ColdpressError for what is no number from 0 up.
    """
    if "=" not in text:
        is_percent = text.strip().endswith("%")
        return {"%" if is_percent else "": _number(text.strip().removesuffix("%"), text)}
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): _number(value.strip(), text) for name, _, value in pairs}


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ColdpressError(
            f"'{value}' in the tolerance '{text}' is not a number from 0 up", hint="write 0.1, 5% or kl=0.1,ppl=1.05"
        )
    return number


def task_of(model: Model | Planned) -> Task | None:
    """The task of a model, by the class that its config.json names; None where no task is for it, or nobody knows."""
    if model.format in _FORMATS:
        return find_task(_FORMATS[model.format])
    folder = settings_of(model)
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return task_of_class(str((config.get("architectures") or [""])[0]))


def task_of_class(architecture: str) -> Task | None:
    """The task of a class of transformers, by the longest ending of its name that one has; of a configuration that
    names none, text generation."""
    if not architecture:
        return find_task("text_generation")
    tasks = [find_task(name) for name in parts.names("tasks")]
    endings = [(len(end), task) for task in tasks for end in task.classes if architecture.endswith(end)]
    return max(endings, key=lambda found: found[0], default=(0, None))[1]


def find_task(name: str) -> Task:
    """A task by its name."""
    found: Task = parts.find("tasks", name)()
    return found
