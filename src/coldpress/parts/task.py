"""What a kind of model is asked, and by which numbers a model is compared with its source.

A task is one file in ``tasks/``. Verification, the report and the model card ask it, so that none of them knows kinds
of models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from coldpress import parts
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.models.model import MODULES, Model
from coldpress.models.planned import Planned, settings_of

if TYPE_CHECKING:
    import numpy as np

#: precisions that limits are for, the closest first
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
#: a share of a sample is lower by more than so many standard errors one time in forty
_STANDARD_ERRORS = 2.0
#: the limit of a graph made from a graph, which any tolerance may set beside those of the task
RELATIVE = "relative"
_FORMATS = {"gguf": "text_generation", "multimodal": "text_generation", **dict.fromkeys(MODULES, "module")}


@dataclass(frozen=True)
class Criterion:
    """One number of a comparison with the source.

    ``title`` and ``meaning``: what a report calls it; without a title it is not shown. ``says``: what a verdict calls
    it. ``limits``: how far it may go, by precision: at most where lower is better, at least where higher is; empty for
    a number that is only told. ``why``: the reason for these limits. ``names``: what a command line may call it, too.
    ``is_share``: a share of answers, shown in percent. ``may_lack``: whether there are models that it cannot be
    measured of. ``usual``: between what it lay, by precision, where sound models were measured.
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
    usual: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def beside_usual(self, value: float, precision: str) -> str:
        """``better``, ``usual`` or ``worse``; "" where nobody knows what is usual."""
        if precision not in self.usual:
            return ""
        low, high = self.usual[precision]
        if low <= value <= high:
            return "usual"
        return "better" if (value < low) == (self.better == "lower") else "worse"

    def broken(self, value: float | None, limit: float, answers: int | None = None) -> str:
        """The sentence for a broken limit; "" for one that is kept. A value that is no number (NaN) breaks it.

        The limit of a share is for all answers that there could be. Of ``answers`` of them, a model that just keeps it
        gives a share that is lower by chance: one that is lower by no more than two standard errors of such a sample,
        sqrt(limit (1 - limit) / answers), breaks nothing.
        """
        if value is None:
            return "" if self.may_lack else f"{self.says} was not measured (limit {limit:g})"
        if self.is_share and answers and 0 < limit < 1:
            chance = _STANDARD_ERRORS * (limit * (1 - limit) / answers) ** 0.5
            is_kept = value >= limit - chance
            by_chance = f" by more than chance makes of {answers} answers ({chance:.2g})"
            return "" if is_kept else f"{self.says} is {value:.4g}, below the limit {limit:g}{by_chance}"
        if self.better == "lower" and not value <= limit:
            return f"{self.says} is {value:.4g}, above the limit {limit:g}"
        if self.better == "higher" and not value >= limit:
            return f"{self.says} is {value:.4g}, below the limit {limit:g}"
        return ""


class Task:
    """What a kind of model is asked.

    ``pipeline``: what model hubs call it; ``names``: what a command line may call it, too. ``loader``: the class of
    transformers that loads such a model. ``classes``: how the names of the classes end that are for it. ``seen_on``:
    the models that were pressed and compared with transformers, trained ones by name. ``runtime``: the package that
    runs the result. ``criteria``: the numbers of a comparison; a tolerance without a name sets the first, one in
    percent that called ``percent``.

    ``is_traced``: whether the network of such a model can be traced: it gives all its outputs at once, or encodes and
    decodes. ``usual_of``: the models that were measured for what is usual. ``metric`` compares a model with its source,
    ``adapter_metric`` adapters with PEFT's, ``layer_metric`` finds the layer that is furthest off. ``metrics``: what is
    measured of a finished model beside its size. ``labelled``: the kind of data with labels for it.
    """

    title: ClassVar[str] = ""
    pipeline: ClassVar[str] = ""
    names: ClassVar[tuple[str, ...]] = ()
    loader: ClassVar[str] = ""
    classes: ClassVar[tuple[str, ...]] = ()
    seen_on: ClassVar[str] = ""
    runtime: ClassVar[str] = "onnxruntime"
    is_traced: ClassVar[bool] = False
    criteria: ClassVar[tuple[Criterion, ...]] = ()
    usual_of: ClassVar[str] = ""
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

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Whether the task is for the model of a config.json whose class ends as one of ``classes``."""
        return True

    @property
    def asked(self) -> dict[str, Any]:
        """The parameters of ``metric`` that are the task's own."""
        return {}

    def examples(
        self, folder: Path, takes: Collection[str], files: Sequence[str] = (), trust_remote_code: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches for the model in a Hugging Face folder whose network has inputs of the names ``takes``.

        The first two differ in every size that a model may leave open. ``files``: texts instead of the shipped ones.
        """
        raise NotImplementedError

    def completed(
        self, folder: Path, inputs: Mapping[str, np.ndarray], speak: Callable[..., list[int]]
    ) -> dict[str, np.ndarray]:
        """An example with what only the source knows, which ``speak`` lets answer (`TorchModel.generate`)."""
        return dict(inputs)

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """What of the outputs for a batch says something: rows of numbers, none for padding."""
        raise NotImplementedError

    def compare(self, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, float]:
        """The numbers of the criteria, from all answers of the source and of a model."""
        raise NotImplementedError

    def measured(self, model: Model) -> tuple[str, ...]:
        """The metrics that a finished model on this machine is measured by, beside its size."""
        return self.metrics

    def limits(self, precision: str | None, asked: str | None) -> dict[str, float]:
        """The limits for a precision by the names of criteria, with those that a user asked for put over them.

        Precisions of fewer bits are held to the limits of int4.
        """
        limits = {one.name: one.limits.get(precision or "", one.limits["int4"]) for one in self.criteria if one.limits}
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
        count = numbers.get("compared")
        return [why for one in judged if (why := one.broken(numbers.get(one.name), limits[one.name], count))]

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
        return task_of_facts(model.format, "")
    folder = settings_of(model)
    if folder is None:
        return None
    return task_of_settings(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def task_of_facts(kind: str, architecture: str) -> Task | None:
    """The task of a source of which only the format is at hand, and the class that its config.json named."""
    return find_task(_FORMATS[kind]) if kind in _FORMATS else task_of_class(architecture)


def task_of_settings(settings: Mapping[str, Any]) -> Task | None:
    """The task of the model of a config.json; None where no task is for it."""
    task = task_of_class(str((settings.get("architectures") or [""])[0]))
    return task if task is not None and task.fits(settings) else None


def task_of_class(architecture: str) -> Task | None:
    """The task of a class of transformers, by the longest ending of its name that one has; of a configuration that
    names none, text generation."""
    if not architecture:
        return find_task("text_generation")
    tasks = [find_task(name) for name in parts.names("tasks")]
    endings = [(len(end), task) for task in tasks for end in task.classes if architecture.endswith(end)]
    return max(endings, key=lambda found: found[0], default=(0, None))[1]


def require_task(asked: str, settings: Mapping[str, Any]) -> None:
    """Refuse a task that the model of a config.json is not for, with the one that it is for.

    Tasks are called as their files, as model hubs call them, or as exporters do: with "-with-past" behind it.
    """
    known = {name: task for name in parts.names("tasks") for task in [find_task(name)]}
    called = {one: name for name, task in known.items() for one in (name.replace("_", "-"), task.pipeline, *task.names)}
    wanted = called.get(asked.lower().replace("_", "-").removesuffix("-with-past"))
    if wanted is None:
        raise ColdpressError(f"there is no task '{asked}'", hint=did_you_mean(asked, called))
    own, kind = task_of_settings(settings), str((settings.get("architectures") or ["a class that is not named"])[0])
    if own is None:
        raise ColdpressError(f"no task is known for {kind}, so not '{asked}'", hint="leave --task out")
    if not isinstance(own, type(known[wanted])):
        raise ColdpressError(
            f"{kind} is for {own.title}; for {known[wanted].title} it would need another head, which is not trained",
            hint=f"use --task {own.pipeline} or leave it out, or take a model whose class ends in"
            f" {' or '.join(known[wanted].classes[:2])}",
        )


def find_task(name: str) -> Task:
    """A task by its name."""
    found: Task = parts.find("tasks", name)()
    return found
