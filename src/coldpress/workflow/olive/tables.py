"""What is known of Olive's names, as data: ``passes.yaml`` and ``keys.yaml``, checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from coldpress.parts import schema

_FOLDER = Path(__file__).parent
#: mappings of a configuration that have a table of keys
KEYS = (
    "root",
    "cache_config",
    "search_strategy",
    "auto_optimizer_config",
    "model",
    "hf_config",
    "load_kwargs",
    "system",
    "accelerator",
    "pass",
    "data",
    "evaluator",
    "metric",
    "packaging",
)


@dataclass(frozen=True)
class Key:
    """A key that is not translated: without effect, and why; or refused, with a hint.

    Values in ``unless`` ask for nothing.
    """

    no_effect: str = ""
    refused: str = ""
    unless: tuple[Any, ...] = (False,)


@dataclass(frozen=True)
class Parameter:
    """What becomes of one parameter of a pass; see the head of passes.yaml."""

    to: str = ""
    values: dict[Any, Any] = field(default_factory=dict)
    refuse: dict[Any, str] = field(default_factory=dict)
    converter: str = ""
    search: tuple[Any, ...] = ()
    no_effect: str = ""
    refused: str = ""
    unless: tuple[Any, ...] = ()

    @property
    def has_no_counterpart(self) -> bool:
        return bool(self.no_effect or self.refused)


@dataclass(frozen=True)
class Then:
    """A further step that a pass becomes where its parameter ``when`` is true; see the head of passes.yaml."""

    when: str
    target: str
    fixed: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """What becomes of a pass; see the head of passes.yaml."""

    target: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)
    which: str = ""
    passes: dict[str, str] = field(default_factory=dict)
    left_out: str = ""
    instead: str = ""
    redundant_after: dict[str, str] = field(default_factory=dict)
    redundant_if: str = ""
    joins: str = ""
    opened: str = ""
    then: Then | None = None
    parameters: dict[str, Parameter] = field(default_factory=dict)

    def without(self, name: str) -> Pass:
        """The same without one of its parameters."""
        return replace(self, parameters={key: value for key, value in self.parameters.items() if key != name})


@cache
def passes() -> Mapping[str, Pass]:
    """Every pass that Olive has or had, by its name."""
    table = _read("passes.yaml")
    return {
        name: _pass(entry, table["_groups"], f"passes.yaml: {name}")
        for name, entry in table.items()
        if name != "_groups"
    }


@cache
def data_parameters() -> Mapping[str, Mapping[str, Parameter]]:
    """Kind of data -> parameters of Olive's data configs."""
    table = _read("data.yaml")
    return {
        kind: schema.build(Pass, {"parameters": _parameters(entry, table["_groups"])}, f"data.yaml: {kind}").parameters
        for kind, entry in table["parameters"].items()
    }


@cache
def metric_parameters(table: str, name: str, which: str) -> Mapping[str, Parameter]:
    """Parameters of one of Olive's metrics or evaluators: those in ``which`` mapping of its entry."""
    entry = {"parameters": _read("metrics.yaml")[table][name][which]}
    return schema.build(Pass, {"parameters": _parameters(entry, {})}, f"metrics.yaml: {name}").parameters


def metric_table(name: str) -> Mapping[str, Any]:
    """A table of metrics.yaml."""
    found: Mapping[str, Any] = _read("metrics.yaml")[name]
    return found


def data_table(name: str) -> Mapping[str, Any]:
    """Another table of data.yaml."""
    found: Mapping[str, Any] = _read("data.yaml")[name]
    return found


@cache
def keys_of(table: str) -> Mapping[str, Key]:
    """The keys of one kind of mapping that are not translated."""
    entries = _read("keys.yaml")[table] or {}
    return {name: schema.build(Key, entry, f"keys.yaml: {table}.{name}") for name, entry in entries.items()}


def names(table: str) -> Mapping[str, Any]:
    """A table of names in keys.yaml: Olive's name -> ours, or a mapping that says why there is none."""
    found: Mapping[str, Any] = _read("keys.yaml")[table]
    return found


def pass_named(name: str) -> Pass | None:
    """A pass by its name, in whatever case, as Olive reads it."""
    return _by_lower_name().get(name.lower())


@cache
def _by_lower_name() -> Mapping[str, Pass]:
    return {name.lower(): entry for name, entry in passes().items()}


def _pass(entry: Mapping[str, Any], groups: Mapping[str, Any], where: str) -> Pass:
    data = _renamed(entry)
    if "then" in entry:
        data["then"] = {**_renamed(entry["then"]), "parameters": _parameters(entry["then"], groups)}
    return schema.build(Pass, {**data, "parameters": _parameters(entry, groups)}, where)


def _renamed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {{"pass": "target", "set": "fixed"}.get(key, key): value for key, value in entry.items() if key != "groups"}


def _parameters(entry: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the groups that an entry names, and its own."""
    found: dict[str, Any] = {}
    for group in entry.get("groups", []):
        found.update(groups[group])
    found.update(entry.get("parameters", {}))
    return {name: _parameter(value) for name, value in found.items()}


def _parameter(entry: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(entry, str):
        return {"to": entry}
    return {{"with": "converter"}.get(key, key): value for key, value in entry.items()}


@cache
def _read(name: str) -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))
    return table
