"""A workflow from a YAML or JSON file or from plain data, of coldpress's own form or in Olive's dialect, checked
whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.parts import schema
from coldpress.parts.schema import Misfit
from coldpress.target import Target, resolve_target
from coldpress.workflow import Measure, Workflow
from coldpress.workflow.calibration_data import CALIBRATING, with_data
from coldpress.workflow.check import check, resolve_data
from coldpress.workflow.documents import Document, read_document
from coldpress.workflow.olive.translation import is_olive, translate

Say = Callable[[str], None]


def load_workflow(source: str | Path | Mapping[str, Any], say: Say = lambda line: None) -> Workflow:
    """A workflow from a YAML or JSON file or from plain data, checked whole.

    A configuration of Olive is translated; ``say`` gets a line for each of its keys that has no effect here. Raises
    ColdpressError that names the file, the line and the path to what is wrong.
    """
    document = Document(dict(source)) if isinstance(source, Mapping) else read_document(Path(source))
    try:
        return _workflow(document.data, say)
    except ColdpressError as error:
        raise document.located(error) from error.__cause__


def _workflow(data: dict[str, Any], say: Say) -> Workflow:
    if not is_olive(data):
        return check(schema.build(Workflow, spelled_out(data)))
    translation = translate(data)
    translation.raise_problems()
    for note in translation.notes:
        say(note)
    return resolve_data(schema.build(Workflow, translation.workflow))  # its parts were checked as they were read


def load_metrics(file: str | Path) -> tuple[Measure, ...]:
    """The metrics of a workflow file, with the data that they name; the file need not name a model."""
    workflow = load_workflow({"model": "", **read_document(Path(file)).data})
    if not workflow.metrics:
        raise ColdpressError(f"{file} names no metrics", hint="list them under 'metrics'")
    return workflow.metrics


def spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """Parts that are only named as mappings with a type, and the target with its provider or device."""
    found = {key: value for key, value in data.items() if key != "$schema"}
    for key in ("passes", "metrics", "packaging"):
        if isinstance(found.get(key), list):
            found[key] = [_typed(item) for item in found[key]]
    if isinstance(found.get("passes"), list):
        found["passes"] = [_of_today(step, f"passes[{index}]") for index, step in enumerate(found["passes"])]
    found |= {"system": _typed(found["system"])} if "system" in found else {}
    target = found.get("target")
    kinds = {field.name: int if field.name == "threads" else str for field in fields(Target)}
    if isinstance(target, Mapping) and all(isinstance(value, kinds.get(key, ())) for key, value in target.items()):
        try:
            found["target"] = schema.plain(resolve_target(**target))
        except ColdpressError as error:
            raise Misfit("target", error.message, error.hint) from None
    return found


def _of_today(step: Any, where: str) -> Any:
    """A step whose pass calibrates, with a source of data in place of the options that such passes once had."""
    if isinstance(step, Mapping) and isinstance(step.get("any_of"), list):
        inner = [_of_today(one, f"{where}.any_of[{index}]") for index, one in enumerate(step["any_of"])]
        return {**step, "any_of": inner}
    if not isinstance(step, Mapping) or not isinstance(step.get("parameters"), Mapping):
        return step
    if not isinstance(step.get("type"), str) or parts.file_name(step["type"]) not in CALIBRATING:
        return step
    try:
        return {**step, "parameters": with_data(step["parameters"])}
    except ColdpressError as error:
        raise Misfit(f"{where}.parameters", error.message, error.hint) from None


def _typed(item: Any) -> Any:
    """A part that is only named as a mapping with a type; alternatives and a system of its own too."""
    if isinstance(item, Mapping) and isinstance(item.get("any_of"), list):
        return {**item, "any_of": [_typed(one) for one in item["any_of"]]}
    if isinstance(item, Mapping) and "system" in item:
        return {**item, "system": _typed(item["system"])}
    return {"type": item} if isinstance(item, str) else item
