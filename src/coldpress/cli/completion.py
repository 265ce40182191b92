"""``completion``: the script that teaches a shell our verbs and options."""

from __future__ import annotations

import click

from coldpress.cli import VERBS


@click.command("completion", help=VERBS["completion"])
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--name", default="coldpress", show_default=True, help="The command to complete: coldpress or olive.")
def command(shell: str, name: str) -> None:
    from click.shell_completion import get_completion_class

    from coldpress.cli import app

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(app, {}, name, f"_{name.upper()}_COMPLETE").source())
