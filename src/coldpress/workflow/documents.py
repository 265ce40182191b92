"""Files of YAML or JSON as plain data that knows the lines it stands on, whatever dialect it is written in."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.parts.schema import Misfit

_SUFFIXES = (".yaml", ".yml", ".json")


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


def read_document(file: Path) -> Document:
    """A YAML or JSON file; raises ColdpressError when it is neither, is no mapping, or has a key twice."""
    if not file.is_file():
        entries = [one.name for one in file.parent.glob("*") if one.suffix in _SUFFIXES]
        close = difflib.get_close_matches(file.name, entries, n=1)
        hint = f"did you mean '{file.parent / close[0]}'?" if close else f"the working directory is {Path.cwd()}"
        raise ColdpressError(f"workflow file '{file}' does not exist", hint=hint)
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
        raise ColdpressError(
            f"{file}, line {error.lineno}: not valid JSON: {error.msg}", hint=_json_hint(text, error)
        ) from error


def _json_hint(text: str, error: json.JSONDecodeError) -> str | None:
    """What is usually wrong with such JSON."""
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if "trailing comma" in error.msg or (before.endswith(",") and after[:1] in ("}", "]")):
        return "leave out the comma before the closing bracket"
    if after.startswith(("//", "#", "/*")):
        return "JSON has no comments; a file with the suffix .yaml may have them, behind #"
    return "names and texts stand in double quotes" if after.startswith("'") else None


def _parse_yaml(file: Path, text: str) -> Any:
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(file, root)
        return yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(file)
        hint = "items of one list or mapping begin in the same column, indented by blanks, not tabs"
        raise ColdpressError(f"{where}: neither YAML nor JSON: {error.problem or error.context}", hint=hint) from error
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
