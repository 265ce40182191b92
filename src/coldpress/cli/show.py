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
    kinds = [kind for kind in _SHOWN if name.replace("-", "_") in parts.names(kind)]
    if not kinds:
        known = [known for kind in _SHOWN for known in parts.names(kind)]
        raise ColdpressError(f"there is no pass, metric or sampler '{name}'", hint=did_you_mean(name, known))
    part = parts.find(kinds[0], name.replace("-", "_"))
    click.echo((sys.modules[part.__module__].__doc__ or "").strip() + "\n")
    click.echo("\n".join(_SHOWN[kinds[0]](part)))


def _pass(part: Any) -> list[str]:
    return [f"reads {', '.join(part.accepts)}; writes {part.produces}", "", *_parameters(part)]


def _parameters(part: Any) -> list[str]:
    lines = []
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


#: what is shown of a part of each kind
_SHOWN = {"passes": _pass, "metrics": _values, "samplers": _parameters}
