"""The whole request: what to do with which model, for which target, and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldpress import parts, schema
from coldpress.errors import ColdpressError
from coldpress.model import Model
from coldpress.target import Target, resolve_target


def is_open(value: Any) -> bool:
    """Whether a parameter is left for a search to fill."""
    return isinstance(value, dict) and ("choice" in value or "range" in value)


@dataclass(frozen=True)
class Step:
    """One pass of a workflow, or alternatives of which a search picks one.

    ``parameters`` are those that differ from the pass's defaults, or repeat them. A parameter may be left open:
    ``{"choice": [4, 8]}`` or ``{"range": [0.0, 1.0]}``; see `coldpress.search.space`. ``any_of``: other steps that may stand
    here; then there is no ``type``. ``optional``: a search may also leave the step out.
    """

    type: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    any_of: tuple[Step, ...] = ()
    optional: bool = False

    @property
    def is_open(self) -> bool:
        """Whether something of it is left for a search to decide."""
        return bool(self.any_of) or self.optional or any(map(is_open, self.parameters.values()))

    def make(self) -> parts.Pass:
        """The pass itself; raises ColdpressError for an unknown pass or parameter."""
        made: parts.Pass = schema.build(parts.find("passes", self.type), self.parameters, f"passes.{self.type}")
        return made

    def check(self, model: Model, target: Target) -> Model:
        """Raise ColdpressError unless the pass can do its work on ``model``; returns a stand-in for what it makes."""
        made = self.make()
        parts.check_needs(type(made))
        if model.format not in made.accepts:
            raise ColdpressError(
                f"pass '{self.type}' takes {' or '.join(made.accepts)}, but gets {model.format}",
                hint=f"give it a model in that format, or leave out '{self.type}'",
            )
        made.check(model, target)
        return Model(model.path, made.produces, "", model.notes)


@dataclass(frozen=True)
class Goal:
    """What one number of a metric shall reach; better is what the metric calls better.

    ``threshold``: at least as good as this. ``max_degradation``, ``min_improvement``: against the source, absolute, or with a
    percent sign a share of the source's number: ``"1%"``. ``priority``: 1 counts most when results are ranked; without one
    the number is only watched.
    """

    threshold: float | None = None
    max_degradation: float | str | None = None
    min_improvement: float | str | None = None
    priority: int | None = None


@dataclass(frozen=True)
class Measure:
    """One metric, its parameters, and goals for the numbers it gives."""

    type: str
    parameters: dict[str, Any] = field(default_factory=dict)
    goals: dict[str, Goal] = field(default_factory=dict)

    def make(self) -> parts.Metric:
        """The metric itself; raises ColdpressError for an unknown metric or parameter."""
        made: parts.Metric = schema.build(parts.find("metrics", self.type), self.parameters, f"metrics.{self.type}")
        return made


@dataclass(frozen=True)
class Search:
    """How the points of a search are picked, and when it ends.

    ``sampler``: grid, random, tpe or nsga2, with ``sampler_parameters``. ``order``: ``joint``, all open parameters at once;
    ``pass_by_pass``, the best of a pass before the next. ``trials``, ``minutes``: at most so many points, so long; None: all
    points, of which there must be a finite number. ``first_look``: drop a point whose cheap numbers show that it cannot meet
    its goals. ``keep``: how many of the best results become folders.
    """

    sampler: str = "tpe"
    sampler_parameters: dict[str, Any] = field(default_factory=dict)
    order: str = field(default="joint", metadata={"choices": ("joint", "pass_by_pass")})
    trials: int | None = None
    minutes: float | None = None
    stop_when_goals_met: bool = False
    first_look: bool = True
    keep: int = 1


@dataclass(frozen=True)
class Verify:
    """Whether and how the result is compared with its source.

    ``tolerance`` overrides the limits that belong to the precision: ``"0.1"`` or ``"kl=0.1,ppl=1.05"``. ``data``: text
    or jsonl files instead of the held-out text that is shipped.
    """

    enabled: bool = True
    tolerance: str | None = None
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workflow:
    """A request that can be written to a file and run again.

    ``model``: a path or a hub id. ``data``: where batches come from, by names that passes and metrics use. ``metrics``:
    what is measured of the result; None: what its kind of model allows. ``search``: how points are picked where
    parameters or passes are left open.
    """

    model: str
    passes: tuple[Step, ...] = ()
    target: Target = Target()
    output: str | None = None
    verify: Verify = Verify()
    data: dict[str, parts.DataSource] = field(default_factory=dict)
    metrics: tuple[Measure, ...] | None = None
    search: Search | None = None
    trust_remote_code: bool = False
    seed: int = 0

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(schema.plain(self), sort_keys=False, allow_unicode=True)


def load_workflow(source: str | Path | dict[str, Any]) -> Workflow:
    """A workflow from a YAML or JSON file or from plain data, checked whole."""
    data = source if isinstance(source, dict) else _read(Path(source))
    where = "" if isinstance(source, dict) else Path(source).name
    workflow = schema.build(Workflow, _spelled_out(data), where)
    resolve_target(workflow.target.device, workflow.target.provider)
    for step in workflow.passes:
        if not step.is_open:
            step.make()
    for measure in workflow.metrics or ():
        measure.make()
    return workflow


def _spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """Passes and metrics that are only named, as mappings with a type."""
    found = dict(data)
    for key in ("passes", "metrics"):
        if isinstance(found.get(key), list):
            found[key] = [{"type": item} if isinstance(item, str) else item for item in found[key]]
    return found


def _read(file: Path) -> dict[str, Any]:
    import yaml

    if not file.is_file():
        raise ColdpressError(f"workflow file '{file}' does not exist")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ColdpressError(f"{file} is neither YAML nor JSON: {error}") from error
    if not isinstance(data, dict):
        raise ColdpressError(f"{file} holds no workflow", hint="a workflow is a mapping with 'model' and 'passes'")
    return data
