"""``cache``: look into the store, or clean it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import PATH
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.jobs.store import Store


class _Uses(click.Group):
    """A wrong name is answered with the closest."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands and not ctx.resilient_parsing and not args[0].startswith("-"):
            known = [name for name, one in self.commands.items() if not one.hidden]
            raise ColdpressError(f"there is no command 'cache {args[0]}'", hint=did_you_mean(args[0], known))
        return super().resolve_command(ctx, args)


@click.group("cache", cls=_Uses, help=VERBS["cache"])
def command() -> None:
    pass


@command.command("ls", help="List finished results, oldest first.")
@click.option("--cache_dir", type=PATH, help="Where finished results are kept.")
def ls(cache_dir: str | None) -> None:
    store, total = Store(cache_dir), 0
    for entry, created, size in store.entries():
        made = datetime.fromtimestamp(created).isoformat(" ", "minutes")
        kind = "model" if "format" in entry.record else "measurement"
        click.echo(f"{entry.key[:12]}  {made}  {size / 1e6:9.1f} MB  {kind}")
        total += size
    click.echo(f"{total / 1e6:.1f} MB in {store.root}", err=True)


@command.command("clean", help="Remove results that are older than some days, and what killed runs left.")
@click.option("--older_than_days", type=click.FloatRange(min=0), default=30.0, show_default=True)
@click.option("--cache_dir", type=PATH, help="Where finished results are kept.")
def clean(older_than_days: float, cache_dir: str | None) -> None:
    count, freed = Store(cache_dir).collect(older_than_days)
    click.echo(f"removed {count} results, {freed / 1e6:.1f} MB")


command.add_command(click.Command("gc", params=clean.params, callback=clean.callback, help=clean.help, hidden=True))
