"""The whole request: what to do with which model, for which target, and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldpress import parts, schema
from coldpress.errors import ColdpressError
from coldpress.target import Target, resolve_target


@dataclass(frozen=True)
class Step:
    """One pass of a workflow: its name, and parameters that differ from its defaults or repeat them."""

    type: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def make(self) -> parts.Pass:
        """The pass itself; raises ColdpressError for an unknown pass or parameter."""
        made: parts.Pass = schema.build(parts.find("passes", self.type), self.parameters, f"passes.{self.type}")
        return made


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

    ``model``: a path or a hub id. ``metrics``: what is measured of the result; None: what its kind of model allows.
    """

    model: str
    passes: tuple[Step, ...] = ()
    target: Target = Target()
    output: str | None = None
    verify: Verify = Verify()
    metrics: tuple[str, ...] | None = None
    trust_remote_code: bool = False
    seed: int = 0

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(schema.plain(self), sort_keys=False, allow_unicode=True)


def load_workflow(source: str | Path | dict[str, Any]) -> Workflow:
    """A workflow from a YAML or JSON file or from plain data, checked whole."""
    data = source if isinstance(source, dict) else _read(Path(source))
    where = "" if isinstance(source, dict) else Path(source).name
    workflow = schema.build(Workflow, data, where)
    resolve_target(workflow.target.device, workflow.target.provider)
    for step in workflow.passes:
        step.make()
    for metric in workflow.metrics or ():
        parts.find("metrics", metric)
    return workflow


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
