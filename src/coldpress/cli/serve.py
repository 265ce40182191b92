"""``serve``: answer OpenAI's clients with pressed models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import common_options, models_option
from coldpress.errors import ColdpressError

_EPILOG = (
    "NAME=MODEL serves a model under another name. An adapter is a model of its own, called MODEL:ADAPTER. "
    "The base URL of clients is http://HOST:PORT/v1; where the environment has COLDPRESS_API_KEY, they must send it. "
    "SIGTERM and Ctrl-C finish the answers that were begun."
)


@click.command("serve", help=VERBS["serve"], epilog=_EPILOG)
@models_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: a free one."
)
@click.option(
    "--parallel", type=click.IntRange(min=1), default=4, show_default=True, help="Answers of a model made at a time."
)
@click.option(
    "--queue",
    "waiting",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Answers of a model that may wait; more are told to come back.",
)
@click.option(
    "--max_new_tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Longest answer where a request does not say.",
)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads of each model; 0: all processors.")
@common_options
def command(session: Any, models: tuple[str, ...], host: str, port: int, **limits: int) -> None:
    from coldpress.api import servable
    from coldpress.parts.needs import check_installed
    from coldpress.runs.engine import Console
    from coldpress.serving.catalog import Catalog, Limits

    check_installed("serve", "fastapi", "uvicorn", "prometheus-client")
    from coldpress.serving.http.gate import rules_here
    from coldpress.serving.http.server import serve

    catalog = Catalog()
    with session.busy():
        for name, model in map(_named, models):
            folder = servable(model, session.store, Console(session.note, session.progress))
            catalog.add(name, folder, Limits(**limits))

    def ready(address: str) -> None:
        click.echo(f"{', '.join(catalog.served)} at {address}/v1; chat at {address}", err=True)

    serve(catalog, host, port, rules_here(), ready)


def _named(model: str) -> tuple[str, str]:
    """The name of a model and where it is; a path is called as its last part."""
    name, equals, place = model.partition("=")
    if equals and not Path(model).exists():
        if not name or not place:
            raise ColdpressError(f"'{model}' is not NAME=MODEL")
        return name, place
    path = Path(model).expanduser()
    return (path.resolve().name if path.exists() else model), model
