"""``list``: the names of all parts."""

from __future__ import annotations

import json

import click

from coldpress import parts
from coldpress.cli import VERBS


@click.command("list", help=VERBS["list"])
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(as_json: bool) -> None:
    found = {kind: list(parts.names(kind)) for kind in parts.KINDS}
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for kind, names in found.items():
        click.echo(f"{kind}: {', '.join(names)}")
    click.echo("`coldpress show NAME` describes one", err=True)
