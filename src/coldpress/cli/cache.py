"""``cache``: look into the store, or clean it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import PATH
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.jobs.remote import Remote
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


_PLACE = click.option("--cache_dir", type=PATH, help="Where finished results are kept; also the URL of a shared cache.")


@command.command("ls", help="List finished results, oldest first.")
@_PLACE
def ls(cache_dir: str | None) -> None:
    if remote := _remote(cache_dir):
        entries = remote.entries()
        for key, made in entries:
            click.echo(f"{key[:12]}  {_minute(made)}")
        click.echo(f"{len(entries)} results in {remote.url}", err=True)
        return
    store, total = Store(cache_dir), 0
    for entry, created, size in store.entries():
        kind = "model" if "format" in entry.record else "measurement"
        click.echo(f"{entry.key[:12]}  {_minute(created)}  {size / 1e6:9.1f} MB  {kind}")
        total += size
    click.echo(f"{total / 1e6:.1f} MB in {store.root}", err=True)


@command.command("clean", help="Remove results that are older than some days, and what killed runs left.")
@click.option("--older_than_days", type=click.FloatRange(min=0), default=30.0, show_default=True)
@click.option("--max_gb", type=click.FloatRange(min=0), help="Of a shared cache: the oldest go that are more.")
@_PLACE
def clean(older_than_days: float, max_gb: float | None, cache_dir: str | None) -> None:
    if remote := _remote(cache_dir):
        count, freed = remote.collect(older_than_days, None if max_gb is None else int(max_gb * 1e9))
    elif max_gb is not None:
        raise ColdpressError("--max_gb is for a shared cache", hint="name its URL with --cache_dir")
    else:
        count, freed = Store(cache_dir).collect(older_than_days)
    click.echo(f"removed {count} results, {freed / 1e6:.1f} MB")


def _remote(place: str | None) -> Remote | None:
    return Remote(place) if place and "://" in place else None


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "minutes")


command.add_command(click.Command("gc", params=clean.params, callback=clean.callback, help=clean.help, hidden=True))
