"""``chat``: talk to a pressed model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import common_options
from coldpress.errors import ColdpressError

if TYPE_CHECKING:
    from coldpress.serving.chat import Conversation

_ADAPTER = "/adapter"
_EPILOG = (
    f"In the conversation, {_ADAPTER} NAME lets another adapter answer, {_ADAPTER} none the base alone; "
    "an empty line ends it."
)


@click.command("chat", help=VERBS["chat"], epilog=_EPILOG)
@click.argument("model")
@click.option("--prompt", help="Ask this one question, print the answer and stop.")
@click.option("--system", help="Instructions given to the model before the conversation.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=PATH",
    help="Adapter file (.onnx_adapter) and what to call it; repeat it for more. The first one answers first.",
)
@click.option("--max_new_tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 or left out: always the likeliest token.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0: all processors.")
@common_options
def command(
    session: Any, model: str, prompt: str | None, system: str | None, adapters: tuple[str, ...], **settings: Any
) -> None:
    from coldpress.serving.chat import Conversation, Settings

    named = dict(map(_named, adapters))
    conversation = Conversation(Path(model), system, Settings(**settings), named, next(iter(named), None))
    for line in [prompt] if prompt else _lines(conversation):
        if line.split()[:1] == [_ADAPTER]:
            _switch(conversation, line)
            continue
        for piece in conversation.ask(line):
            click.echo(piece, nl=False)
        click.echo()
        click.echo(conversation.speed, err=True)


def _named(adapter: str) -> tuple[str, Path]:
    name, equals, path = adapter.partition("=")
    if not equals or not name or not path:
        raise ColdpressError(
            f"--adapter: '{adapter}' is not NAME=PATH", hint=f"write --adapter {Path(adapter).stem}={adapter}"
        )
    return name, Path(path).expanduser()


def _switch(conversation: Conversation, line: str) -> None:
    """``/adapter NAME``; a wrong name is said, and the conversation goes on."""
    name = line.removeprefix(_ADAPTER).strip()
    try:
        if name:
            conversation.use(None if name == "none" else name)
    except ColdpressError as error:
        click.echo(f"{error.message}; {error.hint}", err=True)
        return
    click.echo(f"[{conversation.adapter or 'no adapter'} answers]", err=True)


def _lines(conversation: Conversation) -> Iterator[str]:
    """Lines from the terminal until an empty one or the end."""
    if sys.stdin.isatty():
        click.echo("ask; an empty line or Ctrl-D ends the conversation", err=True)
        if conversation.adapters:
            names = ", ".join(conversation.adapters)
            click.echo(
                f"{_ADAPTER} NAME lets another adapter answer ({names}), {_ADAPTER} none the base alone", err=True
            )
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
