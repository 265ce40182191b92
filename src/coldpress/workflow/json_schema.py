"""A JSON schema of workflow files, for editors: every key with its help text, every part with its parameters.

It is made from the dataclasses themselves. It describes what a file may look like; `load_workflow` checks more, such as
what belongs together, and says it better.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from coldpress import parts
from coldpress.parts.surgery import Operation
from coldpress.workflow import Measure, Package, Place, Step, Workflow

Schema = dict[str, Any]
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}
#: dataclass of a workflow -> the kind of part whose names its ``type`` takes
_KIND_OF = {Step: "passes", Measure: "metrics", Place: "systems", parts.DataSource: "data", Operation: "surgeries"}
#: those that a file may name by a string alone, as ``- press``
_NAMED = (Step, Measure, Package, Place)


def workflow_schema() -> Schema:
    """The whole schema; ``$defs`` holds what is used in several places."""
    definitions: dict[str, Schema] = {}
    root = _object(Workflow, definitions)
    root["properties"] = {
        "$schema": {"description": "This schema, for editors.", "type": "string"},
        **root["properties"],
    }
    title = {"$schema": _DIALECT, "title": "coldpress workflow", "description": _sentence(Workflow)}
    return {**title, **root, "$defs": definitions}


def _object(cls: type[Any], definitions: dict[str, Schema]) -> Schema:
    """A mapping whose keys are the fields of a dataclass."""
    hints = typing.get_type_hints(cls)
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        properties[field.name] = _field(field, hints[field.name], definitions)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(field.name)
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def _field(field: dataclasses.Field[Any], hint: Any, definitions: dict[str, Schema]) -> Schema:
    schema = _of(hint, definitions)
    if choices := field.metadata.get("choices"):
        optional = type(None) in typing.get_args(hint)
        schema = {"enum": [*choices, *([None] if optional else [])]}
    if text := field.metadata.get("help"):
        schema = {"description": text[0].upper() + text[1:] + ".", **schema}
    if isinstance(field.default, str | int | float | bool):
        schema["default"] = field.default
    return schema


def _of(hint: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type of a field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _reference(typing.cast("type[Any]", hint), definitions)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(option, definitions) for option in arguments]}
    if origin in (tuple, list):
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is dict or hint is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions) if arguments else {}}
    if hint is type(None):
        return {"type": "null"}
    return {"type": _TYPES[hint]} if hint in _TYPES else {}


def _reference(cls: type[Any], definitions: dict[str, Schema]) -> Schema:
    name = cls.__name__
    if name not in definitions:
        definitions[name] = {}  # it may contain itself
        schema = {"description": _sentence(cls), **_object(cls, definitions)}
        if (kind := _KIND_OF.get(cls)) in parts.KINDS:
            schema = _with_parts(schema, kind, definitions)
        if cls in _NAMED:
            named = {"enum": _names(cls, schema)}
            schema = {"if": {"type": "string"}, "then": named, "else": schema}
        definitions[name] = schema
    return {"$ref": f"#/$defs/{name}"}


def _names(cls: type[Any], schema: Schema) -> list[str]:
    kind = _KIND_OF.get(cls)
    return list(parts.names(kind)) if kind else list(schema["properties"]["type"]["enum"])


def _with_parts(schema: Schema, kind: str, definitions: dict[str, Schema]) -> Schema:
    """``type`` takes the names of the parts; each name decides which parameters there may be."""
    names = list(parts.names(kind))
    schema["properties"]["type"] = {**schema["properties"]["type"], "enum": names}
    schema["properties"]["type"].pop("default", None)
    rules = []
    for name in names:
        key = f"{kind}.{name}"
        definitions[key] = _parameters(parts.find(kind, name), kind, definitions)
        rules.append(
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": {"properties": {"parameters": {"$ref": f"#/$defs/{key}"}}},
            }
        )
    return {**schema, "allOf": rules}


def _parameters(part: type[Any], kind: str, definitions: dict[str, Schema]) -> Schema:
    """The parameters of a part; those of a pass may be left open."""
    schema, hints = _object(part, definitions), typing.get_type_hints(part)
    for name, given in schema["properties"].items():
        takes_data = parts.DataSource in typing.get_args(hints[name])  # which a file gives by name
        value = {**given, "anyOf": [{"type": "string"}, *given["anyOf"]]} if takes_data else given
        schema["properties"][name] = _or_open(value) if kind == "passes" else value
    return {"description": _sentence(part), **schema}


def _or_open(value: Schema) -> Schema:
    """A parameter that may be left open for a search: some values, or the ends of a range."""
    documented: Schema = {key: value.pop(key) for key in ("description", "default") if key in value}
    choice = {"choice": {"type": "array", "items": value, "minItems": 1}, "otherwise": value}
    forms = [_form(choice, "Values to search among.")]
    if _is_number(value):
        ends = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
        between = {"log": {"type": "boolean"}, "step": {"type": "number", "exclusiveMinimum": 0}}
        forms.append(_form({"range": ends, **between, "otherwise": value}, "Ends of a range to search in."))
    return {**documented, "anyOf": [value, *forms]}


def _form(properties: Schema, text: str) -> Schema:
    """One way to leave a parameter open; ``when`` names other parameters and the values with which it is."""
    required = next(iter(properties))
    return {
        "type": "object",
        "description": text,
        "properties": {**properties, "when": {"type": "object"}},
        "required": [required],
        "additionalProperties": False,
    }


def _is_number(value: Schema) -> bool:
    options = value.get("anyOf", [value])
    return any(option.get("type") in ("integer", "number") for option in options)


def _sentence(cls: type[Any]) -> str:
    """The first paragraph of a class's documentation."""
    text = (cls.__doc__ or "").strip().split("\n\n")[0]
    return "" if text.startswith(f"{cls.__name__}(") else " ".join(text.split())
