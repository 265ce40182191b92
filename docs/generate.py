"""Writes docs/reference.md and docs/olive.md from the command line and the parts themselves, and docs/components.md
from the tests: ``python docs/generate.py``."""

from __future__ import annotations

import dataclasses
import runpy
import sys
from pathlib import Path
from typing import Any

import click

from coldpress import parts
from coldpress.cli import VERBS, app
from coldpress.parts.task import PRECISIONS, find_task
from coldpress.workflow.olive import tables

PAGE = Path(__file__).with_name("reference.md")
OLIVE_PAGE = Path(__file__).with_name("olive.md")


def page() -> str:
    """The reference as Markdown; a test compares it with the file."""
    lines = ["# Reference", "", "Made by `python docs/generate.py`; do not edit.", "", "## Commands", ""]
    context = click.Context(app, info_name="coldpress")
    for name in VERBS:
        command = app.get_command(context, name)
        assert command is not None
        lines += [f"### coldpress {name}", "", VERBS[name], "", *_options(command), ""]
    lines += ["## Passes", ""]
    for name in parts.names("passes"):
        lines += _pass(name)
    lines += ["## Surgeries", "", "What the pass `graph_surgeries` does, by name.", ""]
    for name in parts.names("surgeries"):
        lines += _surgery(name)
    lines += ["## Metrics", ""]
    for name in parts.names("metrics"):
        lines += _metric(name)
    lines += ["## Data", ""]
    for name in parts.names("data"):
        lines += _data(name)
    lines += ["## Tasks", "", *_tasks(), ""]
    lines += ["## Samplers", ""]
    for name in parts.names("samplers"):
        lines += _sampler(name)
    lines += ["## Rules", "", "What `coldpress lint` looks for; passes refuse by the same rules.", ""]
    for name in parts.names("rules"):
        lines += [f"- **{name}**: {(parts.find('rules', name).__doc__ or '').strip()}"]
    return "\n".join(lines).rstrip() + "\n"


def _options(command: click.Command) -> list[str]:
    if isinstance(command, click.Group):
        return [f"Subcommands: {', '.join(command.list_commands(click.Context(command)))}."]
    rows = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            rows.append(f"| `{(parameter.name or '').upper()}` | {'required' if parameter.required else ''} |")
        elif isinstance(parameter, click.Option):
            names = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
            rows.append(f"| {names} | {(parameter.help or '').replace('|', '/')} |")
    return ["| option | |", "|---|---|", *rows] if rows else []


def _pass(name: str) -> list[str]:
    part = parts.find("passes", name)
    lines = [
        f"### {name}",
        "",
        _documentation(part),
        "",
        f"Reads {', '.join(part.accepts)}; writes {part.produces}.",
        "",
    ]
    return [*lines, *_parameters(part)]


def _tasks() -> list[str]:
    """What each kind of model is compared with its source by."""
    lines = ["What a model is compared with its source by, and how far each number may go, by precision.", ""]
    lines += [f"| task | classes that end in | number | {' | '.join(PRECISIONS)} |", "|---|---|---|" + "---|" * 5]
    for name in parts.names("tasks"):
        task = find_task(name)
        for place, one in enumerate(one for one in task.criteria if one.limits):
            first = f"`{name}` | {', '.join(task.classes)}" if place == 0 else " | "
            limits = " | ".join(f"{one.limits[precision]:g}" for precision in PRECISIONS)
            bound = "at most" if one.better == "lower" else "at least"
            lines.append(f"| {first} | `{one.name}`, {bound} | {limits} |")
    lines.append("")
    for name in parts.names("tasks"):
        task = find_task(name)
        lines += [f"### {name}", "", _documentation(type(task)), "", (task.__doc__ or "").strip(), ""]
        lines += [f"`--task {task.pipeline}`. Seen on: {task.seen_on}.", ""] if task.seen_on else []
        if reasons := [f"- `{one.name}`: {one.why}." for one in task.criteria if one.why]:
            lines += ["Why these limits:", "", *reasons, ""]
    return lines


def _sampler(name: str) -> list[str]:
    part = parts.find("samplers", name)
    return [f"### {name}", "", _documentation(part), "", *_parameters(part)]


def _surgery(name: str) -> list[str]:
    part = parts.find("surgeries", name)
    return [f"### {name}", "", _documentation(part), "", *_parameters(part)]


def _parameters(part: Any) -> list[str]:
    fields = dataclasses.fields(part)
    lines = ["| parameter | default | |", "|---|---|---|"] if fields else []
    for field in fields:
        choices = field.metadata.get("choices", ())
        among = f" One of {', '.join(map(str, choices))}." if choices else ""
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        lines.append(f"| `{field.name}` | `{default!r}` | {field.metadata['help'].replace('|', '/')}.{among} |")
    return [*lines, ""] if fields else []


def _metric(name: str) -> list[str]:
    part = parts.find("metrics", name)
    lines = [
        f"### {name}",
        "",
        _documentation(part),
        "",
        *_parameters(part),
        "| number | better | unit |",
        "|---|---|---|",
    ]
    return [*lines, *(f"| `{n}` | {value.better} | {value.unit} |" for n, value in part.values.items()), ""]


def _data(name: str) -> list[str]:
    part = parts.find("data", name)
    return [f"### {name}", "", _documentation(part), "", (part.__doc__ or "").strip(), "", *_parameters(part)]


def _documentation(part: Any) -> str:
    return (sys.modules[part.__module__].__doc__ or "").strip()


def olive_page() -> str:
    """What becomes of Olive's passes, as Markdown; a test compares it with the file."""
    lines = ["# What becomes of Olive's passes", "", "Made by `python docs/generate.py`; do not edit.", ""]
    lines += ["| Olive | coldpress |", "|---|---|"]
    lines += [f"| {name} | {_becomes(entry)} |" for name, entry in sorted(tables.passes().items())]
    lines += ["", "## Parameters of passes without effect", "", "| pass | parameter | why |", "|---|---|---|"]
    for name, entry in sorted(tables.passes().items()):
        lines += [f"| {name} | `{key}` | {one.no_effect} |" for key, one in entry.parameters.items() if one.no_effect]
    lines += ["", "## Other keys without effect", "", "| where | key | why |", "|---|---|---|"]
    for where in tables.KEYS:
        lines += [
            f"| {where} | `{key}` | {one.no_effect} |" for key, one in tables.keys_of(where).items() if one.no_effect
        ]
    return "\n".join(lines) + "\n"


def _becomes(entry: tables.Pass) -> str:
    if entry.which:
        return f"by `{entry.which}`: " + ", ".join(f"{name} ({value})" for value, name in entry.passes.items())
    if entry.target:
        fixed = ", ".join(f"{name}: {value}" for name, value in entry.fixed.items())
        later = "" if entry.target in parts.names("passes") else ", which comes later"
        return f"`{entry.target}`" + (f" with `{fixed}`" if fixed else "") + later
    if entry.joins:
        return f"parameters of the `{entry.joins}` behind it"
    return f"left out: {entry.left_out}" if entry.left_out else f"not there; {entry.instead}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    OLIVE_PAGE.write_text(olive_page(), encoding="utf-8")
    runpy.run_path(str(Path(__file__).with_name("components.py")), run_name="__main__")
