"""``show``: one pass or metric with its parameters."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from coldpress import parts
from coldpress.cli import VERBS
from coldpress.errors import ColdpressError, did_you_mean


@click.command("show", help=VERBS["show"])
@click.argument("name")
def command(name: str) -> None:
    kinds = [kind for kind in ("passes", "metrics") if name.replace("-", "_") in parts.names(kind)]
    if not kinds:
        known = [*parts.names("passes"), *parts.names("metrics")]
        raise ColdpressError(f"there is no pass or metric '{name}'", hint=did_you_mean(name, known))
    part = parts.find(kinds[0], name.replace("-", "_"))
    click.echo((sys.modules[part.__module__].__doc__ or "").strip() + "\n")
    click.echo("\n".join(_parameters(part) if kinds[0] == "passes" else _values(part)))


def _parameters(part: Any) -> list[str]:
    lines = [f"reads {', '.join(part.accepts)}; writes {part.produces}", ""]
    for field in dataclasses.fields(part):
        choices = field.metadata.get("choices", ())
        among = f" (one of {', '.join(map(str, choices))})" if choices else ""
        lines.append(f"  {field.name} = {field.default!r}{among}\n      {field.metadata.get('help', '')}")
    return lines


def _values(part: Any) -> list[str]:
    return [
        f"  {name}: {value.better} is better{', ' + value.unit if value.unit else ''}"
        for name, value in part.values.items()
    ]
