"""The whole request: what to do with which model, for which target, and where the result goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coldpress import parts, schema
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.model import Model
from coldpress.target import Target, resolve_target


@dataclass(frozen=True)
class Step:
    """One pass of a workflow, or alternatives of which a search picks one.

    ``parameters`` are those that differ from the pass's defaults, or repeat them. A parameter may be left open:
    ``{"choice": [4, 8]}`` or ``{"range": [0.0, 1.0]}``; see `search`. ``any_of``: other steps that may stand here; then there is no
    ``type``.
    """

    type: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    any_of: tuple[Step, ...] = ()

    def make(self) -> parts.Pass:
        """The pass itself; raises ColdpressError for an unknown pass or parameter."""
        made: parts.Pass = schema.build(parts.find("passes", self.type), self.parameters, f"passes.{self.type}")
        return made


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

    def check(self, model: Model) -> None:
        """Raise ColdpressError when something that the metric needs is not installed, or its data is not what it should be."""
        made = self.make()
        parts.check_needs(type(made))
        sources = [getattr(made, name) for name in parts.data_fields(type(made))]
        for source in sources:
            if source is not None:
                data = source.make()
                parts.check_needs(type(data))
                data.check(model)


@dataclass(frozen=True)
class Search:
    """How the points of a search are picked, and when it ends.

    ``sampler``: grid, random, tpe or nsga2. ``order``: ``joint``, all open parameters at once; ``pass_by_pass``, the best of a
    pass before the next. ``trials``, ``minutes``: at most so many points, so long; None: no limit, which only a grid may have.
    ``keep``: how many of the best results become folders.
    """

    sampler: str = "tpe"
    order: str = "joint"
    trials: int | None = None
    minutes: float | None = None
    stop_when_goals_met: bool = False
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
    workflow = resolve_data(schema.build(Workflow, _spelled_out(data), where))
    resolve_target(workflow.target.device, workflow.target.provider)
    for step in workflow.passes:
        step.make()
    for measure in workflow.metrics or ():
        measure.make()
    return workflow


def load_metrics(file: str | Path) -> tuple[Measure, ...]:
    """The metrics of a workflow file, with the data that they name; the file need not name a model."""
    workflow = load_workflow({"model": "", **_read(Path(file))})
    if not workflow.metrics:
        raise ColdpressError(f"{file} names no metrics", hint="list them under 'metrics'")
    return workflow.metrics


def resolve_data(workflow: Workflow) -> Workflow:
    """The workflow with the data itself wherever a pass or a metric names an entry of ``data``.

    Raises ColdpressError for a name that is no entry, and for an entry that is of no known kind.
    """
    for name, source in workflow.data.items():
        source.make(f"data.{name}")
    metrics = workflow.metrics
    return replace(
        workflow,
        passes=_with_data(workflow.passes, "passes", workflow.data),
        metrics=None if metrics is None else _with_data(metrics, "metrics", workflow.data),
    )


def _with_data(named: tuple[Any, ...], where: str, data: Mapping[str, parts.DataSource]) -> tuple[Any, ...]:
    """Steps, their alternatives too, or measures, with data in place of its names."""
    found = []
    for index, part in enumerate(named):
        place = f"{where}[{index}]"
        if isinstance(part, Step) and part.any_of:
            found.append(replace(part, any_of=_with_data(part.any_of, f"{place}.any_of", data)))
            continue
        kind = parts.find("passes" if isinstance(part, Step) else "metrics", part.type)
        given = {
            name: part.parameters[name] for name in parts.data_fields(kind) if part.parameters.get(name) is not None
        }
        known = {name: _named_data(value, data, f"{place}.parameters.{name}") for name, value in given.items()}
        found.append(replace(part, parameters={**part.parameters, **known}))
    return tuple(found)


def _named_data(value: Any, data: Mapping[str, parts.DataSource], where: str) -> Any:
    """A name as the data that it stands for, also among the values of an open parameter; all else as it is."""
    if isinstance(value, Mapping) and isinstance(value.get("choice"), list | tuple):
        return {**value, "choice": [_named_data(one, data, where) for one in value["choice"]]}
    if not isinstance(value, str):
        return schema.plain(value)
    if value not in data:
        hint = did_you_mean(value, data) if data else "describe it under 'data', with a type and parameters"
        raise ColdpressError(f"{where}: there is no data '{value}' in the workflow", hint=hint)
    return schema.plain(data[value])


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
