"""``show``: one pass or metric with its parameters."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import click

from coldpress import parts
from coldpress.cli import VERBS
from coldpress.cli.options import Completed
from coldpress.errors import ColdpressError, did_you_mean


@click.command("show", help=VERBS["show"])
@click.argument(
    "name", type=Completed(lambda: [name for kind in parts.KINDS for name in parts.names(kind)]), required=False
)
@click.option("--schema", is_flag=True, help="Print the JSON schema of workflow files, for editors.")
def command(name: str | None, schema: bool) -> None:
    if schema:
        from coldpress.workflow.json_schema import workflow_schema

        click.echo(json.dumps(workflow_schema(), indent=1))
        return
    if name is None:
        raise ColdpressError("nothing to show", hint="name a part that `coldpress list` lists, or add --schema")
    kind, part = _find(name.replace("-", "_"))
    click.echo((sys.modules[part.__module__].__doc__ or "").strip() + "\n")
    click.echo("\n".join(_values(part) if kind == "metrics" else _parameters(part)))


def _find(name: str) -> tuple[str, Any]:
    for kind in parts.KINDS:
        if name in parts.names(kind):
            return kind, parts.find(kind, name)
    known = [known for kind in parts.KINDS for known in parts.names(kind)]
    raise ColdpressError(f"there is no pass, metric or other part '{name}'", hint=did_you_mean(name, known))


def _parameters(part: Any) -> list[str]:
    is_pass = issubclass(part, parts.Pass)
    lines = [f"reads {', '.join(part.accepts)}; writes {part.produces}", ""] if is_pass else []
    for field in dataclasses.fields(part):
        choices = field.metadata.get("choices", ())
        among = f" (one of {', '.join(map(str, choices))})" if choices else ""
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        lines.append(f"  {field.name} = {default!r}{among}\n      {field.metadata.get('help', '')}")
    return lines


def _values(part: Any) -> list[str]:
    return [
        f"  {name}: {value.better} is better{', ' + value.unit if value.unit else ''}"
        for name, value in part.values.items()
    ]
