"""Writes docs/reference.md from the command line and the parts themselves: ``python docs/generate.py``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from coldpress import parts
from coldpress.cli import VERBS, app

PAGE = Path(__file__).with_name("reference.md")


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
    lines += ["## Metrics", ""]
    for name in parts.names("metrics"):
        lines += _metric(name)
    lines += ["## Samplers", ""]
    for name in parts.names("samplers"):
        lines += _sampler(name)
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


def _sampler(name: str) -> list[str]:
    part = parts.find("samplers", name)
    return [f"### {name}", "", _documentation(part), "", *_parameters(part)]


def _parameters(part: Any) -> list[str]:
    lines = []
    fields = dataclasses.fields(part)
    if fields:
        lines += ["| parameter | default | |", "|---|---|---|"]
    for field in fields:
        choices = field.metadata.get("choices", ())
        among = f" One of {', '.join(map(str, choices))}." if choices else ""
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        lines.append(f"| `{field.name}` | `{default!r}` | {field.metadata['help']}.{among} |")
    return [*lines, ""]


def _metric(name: str) -> list[str]:
    part = parts.find("metrics", name)
    lines = [f"### {name}", "", _documentation(part), "", "| number | better | unit |", "|---|---|---|"]
    return [*lines, *(f"| `{n}` | {value.better} | {value.unit} |" for n, value in part.values.items()), ""]


def _documentation(part: Any) -> str:
    return (sys.modules[part.__module__].__doc__ or "").strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
