"""``doctor``: examine this machine and installation."""

from __future__ import annotations

import dataclasses
import json

import click

from coldpress.cli import VERBS
from coldpress.errors import WORK_FAILED

_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


@click.command("doctor", help=VERBS["doctor"])
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(as_json: bool) -> int:
    from coldpress.runs.doctor import examine, worst

    findings = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            state = click.style(f"{finding.state:<5}", fg=_COLOURS[finding.state])
            click.echo(f"{state} {finding.name:<24} {finding.value}")
            if finding.advice:
                click.echo(f"{'':<6}{'':<24} {finding.advice}")
    return WORK_FAILED if worst(findings) == "bad" else 0
