"""The whole request: what to do with which model, for which target, and where the result goes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.jobs.store import Store, shared
from coldpress.jobs.system import Executor, System
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import option, schema
from coldpress.target import Target

LOG_LEVELS = (0, 1, 2, 3, 4)
#: how a parameter is left open: a list of values, or the two ends of a range
OPEN = ("choice", "range")


def is_open(value: Any) -> bool:
    """Whether a parameter is left for a search to fill."""
    return isinstance(value, Mapping) and any(form in value for form in OPEN)


@dataclass(frozen=True)
class Step:
    """One pass of a workflow, or alternatives of which a search picks one.

    ``parameters`` are those that differ from the pass's defaults, or repeat them. A parameter may be left open:
    ``{"choice": [4, 8]}`` or ``{"range": [0.0, 1.0]}``; see `coldpress.search.space`. ``any_of``: other steps that may
    stand here; then there is no ``type``. ``optional``: a search may also leave the step out.
    """

    type: str = option("name of the pass", "")
    parameters: dict[str, Any] = option("parameters of the pass; what is left out has its default", dict)
    any_of: tuple[Step, ...] = option("steps of which a search picks one, instead of a type", ())
    optional: bool = option("a search may also leave the step out", False)

    @property
    def is_open(self) -> bool:
        """Whether something of it is left for a search to decide."""
        return bool(self.any_of) or self.optional or any(map(is_open, self.parameters.values()))

    def make(self, where: str = "") -> parts.Pass:
        """The pass itself; raises ColdpressError, with ``where`` in front, for an unknown pass or parameter."""
        part = parts.find("passes", self.type)
        made: parts.Pass = schema.build(part, self.parameters, where or f"passes.{self.type}")
        return made

    def spelled_out(self) -> Step:
        """The step with every parameter; those that are left open stay so."""
        if self.any_of:
            return replace(self, any_of=tuple(one.spelled_out() for one in self.any_of))
        left_open = {name: value for name, value in self.parameters.items() if is_open(value)}
        closed = {name: value for name, value in self.parameters.items() if name not in left_open}
        return replace(self, parameters={**schema.plain(Step(self.type, closed).make()), **left_open})

    def check(self, model: Model | Planned, target: Target) -> Model | Planned:
        """Raise ColdpressError unless the pass can do its work on ``model``; returns what it is going to make."""
        made = self.make()
        parts.check_needs(type(made))
        if model.format not in made.accepts:
            raise ColdpressError(
                f"pass '{self.type}' takes {' or '.join(made.accepts)}, but gets {model.format}",
                hint=_way_to(made.accepts, model.format, self.type),
            )
        made.check(model, target)
        return made.foretold(model)


def _way_to(accepted: tuple[str, ...], given: str, name: str) -> str:
    """What to do about a model in a format that a pass does not take."""
    if "onnx" in accepted and given in ("hf", "gguf", "adapter"):
        return (
            f"put the pass 'press' in front of it, with the precision it shall have; or give '{name}' what auto-opt"
            " wrote"
        )
    return f"give it a model in that format, or leave out '{name}'"


@dataclass(frozen=True)
class Goal:
    """What one number of a metric shall reach; better is what the metric calls better.

    ``threshold``: at least as good as this. ``max_degradation``, ``min_improvement``: against the source, absolute, or
    with a percent sign a share of the source's number: ``"1%"``. ``priority``: 1 counts most when results are ranked;
    without one the number is only watched.
    """

    threshold: float | None = option("at least as good as this number", None)
    max_degradation: float | str | None = option("at most so much worse than the source, absolute or as '1%'", None)
    min_improvement: float | str | None = option("at least so much better than the source, absolute or as '1%'", None)
    priority: int | None = option("1 counts most when results are ranked; left out, the number is only watched", None)


@dataclass(frozen=True)
class Place:
    """A system, where jobs run: its type and how to get there."""

    type: str = option("name of the system", "local")
    parameters: dict[str, Any] = option("parameters of the system", dict)

    def make(self, where: str = "") -> System:
        """The system itself; raises ColdpressError, with ``where`` in front, for an unknown system or parameter."""
        part = parts.find("systems", self.type)
        made: System = schema.build(part, self.parameters, where or f"systems.{self.type}")
        return made


@dataclass(frozen=True)
class Measure:
    """One metric, its parameters, goals for the numbers it gives, and the system where it is measured, if that is not
    the workflow's."""

    type: str = option("name of the metric")
    parameters: dict[str, Any] = option("parameters of the metric; what is left out has its default", dict)
    goals: dict[str, Goal] = option("what its numbers shall reach, by name", dict)
    system: Place | None = option("where it is measured, if not where the rest of the work is done", None)

    def make(self, where: str = "") -> parts.Metric:
        """The metric itself; raises ColdpressError, with ``where`` in front, for an unknown metric or parameter."""
        part = parts.find("metrics", self.type)
        made: parts.Metric = schema.build(part, self.parameters, where or f"metrics.{self.type}")
        return made

    def check(self, model: Model | Planned) -> None:
        """Raise ColdpressError when something that the metric needs is not installed, or its data is not what it should
        be."""
        made = self.make()
        parts.check_needs(type(made))
        sources = [getattr(made, name) for name in parts.data_fields(type(made))]
        for source in sources:
            if source is not None:
                data = source.make()
                parts.check_needs(type(data))
                data.check(model)

    def executor(self, of_run: Executor) -> Executor:
        """Where it is measured: the executor of the run, or that of its own system."""
        return of_run if self.system is None else replace(of_run, system=self.system.make())


def labels_of(measures: Sequence[Measure]) -> list[str]:
    """A name for each metric: its type, numbered from the second of a type on."""
    met: dict[str, int] = {}
    names = []
    for measure in measures:
        met[measure.type] = met.get(measure.type, 0) + 1
        names.append(measure.type if met[measure.type] == 1 else f"{measure.type}-{met[measure.type]}")
    return names


@dataclass(frozen=True)
class Search:
    """How the points of a search are picked, and when it ends.

    ``sampler``: grid, random, tpe or nsga2, with ``sampler_parameters``. ``order``: ``joint``, all open parameters at
    once; ``pass_by_pass``, the best of a pass before the next. ``trials``, ``minutes``: at most so many points, so
    long; None: all points, of which there must be a finite number. ``first_look``: drop a point whose cheap numbers
    show that it cannot meet its goals. ``keep``: how many of the best results become folders.
    """

    sampler: str = option("how points are picked: grid, random, tpe or nsga2", "tpe")
    sampler_parameters: dict[str, Any] = option("parameters of the sampler", dict)
    order: str = option(
        "all open parameters at once, or the best of a pass before the next", "joint", ("joint", "pass_by_pass")
    )
    trials: int | None = option("points at most", None)
    minutes: float | None = option("time at most", None)
    stop_when_goals_met: bool = option("end with the first point that reaches all goals", False)
    first_look: bool = option("drop points whose cheap numbers show that they cannot reach the goals", True)
    keep: int = option("how many of the best results become folders", 1)


@dataclass(frozen=True)
class Verify:
    """Whether and how the result is compared with its source.

    ``tolerance`` overrides the limits that belong to the precision: ``"0.1"`` or ``"kl=0.1,ppl=1.05"``. ``data``: text
    or jsonl files instead of the held-out text that is shipped.
    """

    enabled: bool = option("run the result and compare it with its source", True)
    tolerance: str | None = option("limits, such as 0.1 (KL) or kl=0.1,ppl=1.05", None)
    data: tuple[str, ...] = option("text or jsonl files to compare on, instead of the shipped text", ())
    max_memory: float | None = option(
        "gigabytes that loading the source may take besides mapped files; default: half of what is free", None
    )


@dataclass(frozen=True)
class Package:
    """A form in which the result can be taken away, written into the output folder."""

    type: str = option(
        "zipfile: model, report, requirements, and code in several languages; dockerfile: an image that serves the "
        "model; mlflow: the model as MLflow loads it; model_package: variants for several devices",
        choices=("zipfile", "dockerfile", "mlflow", "model_package"),
    )
    name: str = option("name of the archive or image", "model")
    base_image: str = option("image that the Dockerfile starts from", "python:3.12-slim")
    requirements_file: str | None = option("file with further packages to install", None)
    variants: dict[str, str] = option("output folders of further results for a model_package, by name", dict)


@dataclass(frozen=True)
class Running:
    """How a run goes about its work; nothing of it changes the result."""

    cache_dir: str | None = option("where finished results are kept", None)
    cache: str | None = option("URL where results are shared with other machines, such as s3://BUCKET/FOLDER", None)
    cache_read_only: bool = option("take results from there, and bring none", False)
    clean_cache: bool = option("use no finished results, do everything anew", False)
    log_level: int | None = option("0: everything, 1: steps, 2: warnings, 3: errors, 4: nothing", None, LOG_LEVELS)
    log_to_file: bool = option("write what is logged into OUTPUT.log, too", False)

    def open_store(self) -> Store:
        """The store that a run looks into; with ``clean_cache`` nothing in it is young enough to be found."""
        since = time.time() if self.clean_cache else 0.0
        return shared(self.cache_dir, since, self.cache, self.cache_read_only)


@dataclass(frozen=True)
class Workflow:
    """A request that can be written to a file and run again.

    ``model``: a path or a hub id. ``data``: where batches come from, by names that passes and metrics use. ``metrics``:
    what is measured of the result; None: what its kind of model allows. ``search``: how points are picked where
    parameters or passes are left open.
    """

    model: str = option("folder, file or hub id")
    passes: tuple[Step, ...] = option("what is done to the model, in this order", ())
    target: Target = option("where the result shall run", Target())
    output: str | None = option("folder for the result", None)
    verify: Verify = option("how the result is compared with its source", Verify())
    data: dict[str, parts.DataSource] = option("where batches come from, by names that passes and metrics use", dict)
    metrics: tuple[Measure, ...] | None = option("what is measured of the result", None)
    search: Search | None = option("how the points of a search are picked", None)
    system: Place = option("where the work is done", Place())
    packaging: tuple[Package, ...] = option("forms in which the result can be taken away", ())
    artifacts: bool = option("write report, model card and workflow beside the model", True)
    run: Running = option("how the run goes about its work", Running())
    trust_remote_code: bool = option("run code that comes with the model", False)
    seed: int = option("feeds every random choice", 0)

    def resolved(self) -> Workflow:
        """The workflow with every parameter of its passes spelled out."""
        return replace(self, passes=tuple(step.spelled_out() for step in self.passes))

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(schema.plain(self), sort_keys=False, allow_unicode=True)
