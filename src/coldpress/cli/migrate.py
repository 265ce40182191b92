"""``migrate``: a configuration of Olive's as a workflow file."""

from __future__ import annotations

from pathlib import Path

import click

from coldpress.cli import VERBS
from coldpress.cli.options import PATH
from coldpress.errors import REQUEST_WRONG, ColdpressError


@click.command("migrate", help=VERBS["migrate"])
@click.argument("config", type=PATH)
@click.option(
    "-o",
    "--output_path",
    type=PATH,
    help="The new file, YAML or (with the suffix .json) JSON; left out, it is printed.",
)
@click.option("--overwrite", is_flag=True, help="Replace the new file when it is there already.")
def command(config: str, output_path: str | None, overwrite: bool) -> int:
    from coldpress.workflow.olive.migration import migrate, rendered
    from coldpress.workflow.olive.reading import grouped

    source, target = Path(config), Path(output_path) if output_path else None
    if target is not None and target.exists() and not overwrite:
        raise ColdpressError(f"{target} exists", hint="choose another, or add --overwrite")
    translation, problems = migrate(source)
    for note in grouped(translation.notes):
        click.echo(f"{click.style('note:', fg='yellow')} {note}", err=True)
    for problem in problems:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {problem.message}", err=True)
        if problem.hint:
            click.echo(f"{click.style('hint:', fg='cyan', bold=True)} {problem.hint}", err=True)
    if problems:
        click.echo("nothing was written", err=True)
        return REQUEST_WRONG
    text = rendered(translation, source, as_json=target is not None and target.suffix == ".json")
    if target is None:
        click.echo(text, nl=False)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return 0
