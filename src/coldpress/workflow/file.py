"""A workflow from a YAML or JSON file or from plain data, of coldpress's own form or Olive's, checked whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from coldpress import parts, schema
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.schema import Misfit
from coldpress.target import Target, resolve_target
from coldpress.workflow import OPEN, Measure, Step, Workflow, is_open

Say = Callable[[str], None]


@dataclass(frozen=True)
class Document:
    """Plain data and where it stands: ``name`` of the file, ``text`` in it; both empty for data from memory."""

    data: dict[str, Any]
    name: str = ""
    text: str = ""

    def located(self, error: ColdpressError) -> ColdpressError:
        """An error about something in this document, with the file's name and, where it can be told, the line."""
        if not self.name:
            return error
        line = _line(self.text, error.place) if isinstance(error, Misfit) else None
        where = f"{self.name}, line {line}" if line else self.name
        return ColdpressError(f"{where}: {error.message}", hint=error.hint, exit_code=error.exit_code)


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
    from coldpress.olive_config import is_olive, translate

    if not is_olive(data):
        return check(schema.build(Workflow, spelled_out(data)))
    translation = translate(data)
    translation.raise_problems()
    for note in translation.notes:
        say(note)
    return check(schema.build(Workflow, translation.workflow))


def load_metrics(file: str | Path) -> tuple[Measure, ...]:
    """The metrics of a workflow file, with the data that they name; the file need not name a model."""
    workflow = load_workflow({"model": "", **read_document(Path(file)).data})
    if not workflow.metrics:
        raise ColdpressError(f"{file} names no metrics", hint="list them under 'metrics'")
    return workflow.metrics


def resolve_data(workflow: Workflow) -> Workflow:
    """The workflow with the data itself wherever a pass or a metric names an entry of ``data``.

    Raises ColdpressError for a name that is no entry.
    """
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
        fields_of_data = _data_fields("passes" if isinstance(part, Step) else "metrics", part.type)
        given = {name: part.parameters[name] for name in fields_of_data if part.parameters.get(name) is not None}
        known = {name: _named_data(value, data, f"{place}.parameters.{name}") for name, value in given.items()}
        found.append(replace(part, parameters={**part.parameters, **known}))
    return tuple(found)


def _data_fields(kind: str, name: str) -> tuple[str, ...]:
    try:
        return parts.data_fields(parts.find(kind, name))
    except ColdpressError:
        return ()  # `check` says which part there is not, and where


def _named_data(value: Any, data: Mapping[str, parts.DataSource], where: str) -> Any:
    """A name as the data that it stands for, also among the values of an open parameter; all else as it is."""
    if isinstance(value, Mapping) and isinstance(value.get("choice"), list | tuple):
        return {**value, "choice": [_named_data(one, data, where) for one in value["choice"]]}
    if not isinstance(value, str):
        return schema.plain(value)
    if value not in data:
        hint = did_you_mean(value, data) if data else "describe it under 'data', with a type and parameters"
        raise Misfit(where, f"there is no data '{value}' in the workflow", hint)
    return schema.plain(data[value])


def spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """Parts that are only named as mappings with a type, and the target with its provider or device."""
    found = {key: value for key, value in data.items() if key != "$schema"}
    for key in ("passes", "metrics", "packaging"):
        if isinstance(found.get(key), list):
            found[key] = [_typed(item) for item in found[key]]
    found |= {"system": _typed(found["system"])} if "system" in found else {}
    target = found.get("target")
    kinds = {field.name: int if field.name == "threads" else str for field in fields(Target)}
    if isinstance(target, Mapping) and all(isinstance(value, kinds.get(key, ())) for key, value in target.items()):
        try:
            found["target"] = schema.plain(resolve_target(**target))
        except ColdpressError as error:
            raise Misfit("target", error.message, error.hint) from None
    return found


def _typed(item: Any) -> Any:
    """A part that is only named as a mapping with a type; alternatives too."""
    if isinstance(item, Mapping) and isinstance(item.get("any_of"), list):
        return {**item, "any_of": [_typed(one) for one in item["any_of"]]}
    return {"type": item} if isinstance(item, str) else item


def check(workflow: Workflow) -> Workflow:
    """The workflow with its data where it is named, if every part in it exists and takes its parameters.

    Raises Misfit with the path otherwise.
    """
    workflow = resolve_data(workflow)
    for name, source in workflow.data.items():
        with _placed(f"data.{name}.type"):
            schema.build(parts.find("data", source.type), source.parameters, f"data.{name}.parameters")
    for index, step in enumerate(workflow.passes):
        check_step(step, f"passes[{index}]")
    for index, measure in enumerate(workflow.metrics or ()):
        with _placed(f"metrics[{index}].type"):
            measure.make(f"metrics[{index}].parameters")
    with _placed("system.type"):
        workflow.system.make("system.parameters")
    return workflow


def check_step(step: Step, where: str, inside: str = "") -> None:
    """Raise Misfit unless the step's pass, or each of its alternatives, exists and takes its parameters.

    ``where`` is the path to the step, ``inside`` that to its parameters, if it is not below.
    """
    if step.any_of:
        if step.type or step.parameters:
            raise Misfit(where, "a step has either a type or any_of, not both", "put the pass among the alternatives")
        for index, alternative in enumerate(step.any_of):
            check_step(alternative, f"{where}.any_of[{index}]")
        return
    if not step.type:
        raise Misfit(where, "this step names no pass", "give it a type; `coldpress list` shows them")
    inside = inside or f"{where}.parameters"
    for parameters in _points(step.parameters, inside):
        with _placed(f"{where}.type"):
            Step(step.type, parameters).make(inside)


def _points(parameters: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Parameters with each open one filled, so that every value a search could pick occurs once."""
    values = {name: _values(value, f"{where}.{name}") for name, value in parameters.items() if is_open(value)}
    first = {**parameters, **{name: found[0] for name, found in values.items()}}
    yield first
    for name, found in values.items():
        for value in found[1:]:
            yield {**first, name: value}


def _values(value: Mapping[str, Any], where: str) -> list[Any]:
    form = next(form for form in OPEN if form in value)
    found = value[form]
    if not isinstance(found, list | tuple) or not found:
        raise Misfit(f"{where}.{form}", "there is nothing to pick from", "give a list of values")
    return list(found)


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Give errors that have no place yet this one."""
    try:
        yield
    except Misfit:
        raise
    except ColdpressError as error:
        raise Misfit(where, error.message, error.hint) from None


# Files


def read_document(file: Path) -> Document:
    """A YAML or JSON file; raises ColdpressError when it is neither, is no mapping, or has a key twice."""
    if not file.is_file():
        raise ColdpressError(f"workflow file '{file}' does not exist")
    text = file.read_text(encoding="utf-8-sig")
    data = _parse_json(file, text) if file.suffix == ".json" else _parse_yaml(file, text)
    if not isinstance(data, dict):
        raise ColdpressError(f"{file} holds no workflow", hint="a workflow is a mapping with 'model' and 'passes'")
    return Document(data, file.name, text)


def _parse_json(file: Path, text: str) -> Any:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ColdpressError(f"{file}: the key '{twice}' stands there twice", hint="leave one out")
        return found

    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        raise ColdpressError(f"{file}, line {error.lineno}: not valid JSON: {error.msg}") from error


def _parse_yaml(file: Path, text: str) -> Any:
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(file, root)
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ColdpressError(f"{file} is neither YAML nor JSON: {error}") from error


def _loader() -> Any:
    """YAML's safe loader, which also reads ``1e-4`` as a number, as JSON and everybody else does."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def _refuse_duplicates(file: Path, root: Any) -> None:
    """YAML lets the last of two equal keys win; nobody wants that."""
    import yaml

    left, met = [root], set()
    while left:
        node = left.pop()
        if id(node) in met:  # an alias
            continue
        met.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else ""
                if name in seen:
                    line = key.start_mark.line + 1
                    raise ColdpressError(f"{file}, line {line}: the key '{name}' stands there twice")
                seen |= {name} - {"", "<<"}
                left.append(value)


def _line(text: str, place: str) -> int | None:
    """The line of a file on which the path ``place`` stands, or the deepest part of it that is there."""
    import yaml

    try:
        node = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)  # JSON may be indented with tabs
    except yaml.YAMLError:
        return None
    line = None
    for name in re.findall(r"[^.\[\]]+", place):
        mark, node = _child(node, name)
        if mark is None:
            break
        line = mark.line + 1
    return line


def _child(node: Any, name: str) -> tuple[Any, Any]:
    """Where an item of a mapping or list begins, and the item."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark, value) for key, value in node.value if key.value == name), (None, None))
    if isinstance(node, yaml.SequenceNode) and name.isdigit() and int(name) < len(node.value):
        return node.value[int(name)].start_mark, node.value[int(name)]
    return None, None
