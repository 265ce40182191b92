"""``chat``: talk to a pressed model."""

from __future__ import annotations

import sys
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import common_options


@click.command("chat", help=VERBS["chat"])
@click.argument("model")
@click.option("--prompt", help="Ask this one question, print the answer and stop.")
@click.option("--system", help="Instructions given to the model before the conversation.")
@click.option("--max_new_tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 or left out: always the likeliest token.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0: all processors.")
@common_options
def command(session: Any, model: str, prompt: str | None, **settings: Any) -> None:
    from coldpress.chat import Conversation

    conversation = Conversation(model, **settings)
    for question in [prompt] if prompt else _questions():
        for piece in conversation.ask(question):
            click.echo(piece, nl=False)
        click.echo()
        click.echo(conversation.speed, err=True)


def _questions() -> Any:
    """Lines from the terminal until an empty one or the end."""
    if sys.stdin.isatty():
        click.echo("ask; an empty line or Ctrl-D ends the conversation", err=True)
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
