"""``lint``: what is slow or wasteful in an ONNX model, made anywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import common_options, model_option, target_options


@click.command("lint", help=VERBS["lint"])
@model_option
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@common_options
def command(session: Any, model_name_or_path: str, as_json: bool, **where: Any) -> int:
    from coldpress.errors import WORSE_THAN_TOLERANCE
    from coldpress.models.sources import find_model
    from coldpress.runs.lint import lint
    from coldpress.target import resolve_target

    target = resolve_target(**where)
    found = list(lint(find_model(model_name_or_path, say=session.say), target))
    if as_json:
        session.data([{"rule": one.rule, "graph": one.graph, **dataclasses.asdict(one.finding)} for one in found])
    else:
        for one in found:
            finding = one.finding
            colour = "red" if finding.severity == "error" else "yellow"
            place = ": ".join(filter(None, (one.graph, finding.place)))
            click.echo(f"{click.style(finding.severity, fg=colour, bold=True)} {place}: {finding.problem} [{one.rule}]")
            click.echo(f"{click.style('fix', fg='cyan')} {finding.fix}")
        count = f"{len(found)} finding{'' if len(found) == 1 else 's'}" if found else "nothing found"
        click.echo(f"{count} in {Path(model_name_or_path).name or model_name_or_path} for {target.provider}", err=True)
    return WORSE_THAN_TOLERANCE if any(one.finding.severity == "error" for one in found) else 0
