"""``cache``: look into the store, or clean it."""

from __future__ import annotations

from datetime import datetime

import click

from coldpress.cli import VERBS
from coldpress.jobs.store import Store


@click.group("cache", help=VERBS["cache"])
def command() -> None:
    pass


@command.command("ls", help="List finished results, oldest first.")
@click.option("--cache_dir", help="Where finished results are kept.")
def ls(cache_dir: str | None) -> None:
    store, total = Store(cache_dir), 0
    for entry, created, size in store.entries():
        made = datetime.fromtimestamp(created).isoformat(" ", "minutes")
        kind = "model" if "format" in entry.record else "measurement"
        click.echo(f"{entry.key[:12]}  {made}  {size / 1e6:9.1f} MB  {kind}")
        total += size
    click.echo(f"{total / 1e6:.1f} MB in {store.root}", err=True)


@command.command("gc", help="Remove results that are older than some days, and what killed runs left.")
@click.option("--older_than_days", type=click.FloatRange(min=0), default=30.0, show_default=True)
@click.option("--cache_dir", help="Where finished results are kept.")
def gc(older_than_days: float, cache_dir: str | None) -> None:
    count, freed = Store(cache_dir).collect(older_than_days)
    click.echo(f"removed {count} results, {freed / 1e6:.1f} MB")
