"""``chat``: talk to a pressed model."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import common_options, model_option
from coldpress.errors import ColdpressError, did_you_mean

if TYPE_CHECKING:
    from coldpress.serving.chat import Conversation

_COMMANDS = {
    "/help": "what can be said here",
    "/adapter": "NAME lets another adapter answer, none the base alone",
    "/system": "TEXT gives the model other instructions",
    "/reset": "forgets what was said",
    "/exit": "ends the conversation, as Ctrl-D does",
}
_EPILOG = (
    "In the conversation: "
    + "; ".join(f"{name} {what}" for name, what in _COMMANDS.items())
    + ". Ctrl-C stops an answer."
)
_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?", re.DOTALL)
_REMEMBERED_LINES = 1000


@click.command("chat", help=VERBS["chat"], epilog=_EPILOG)
@model_option
@click.option("--prompt", help="Ask this one question, print the answer and stop; - reads it from a pipe.")
@click.option("--system", help="Instructions given to the model before the conversation.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=PATH",
    help="Adapter file (.onnx_adapter) and what to call it; repeat it for more. The first one answers first.",
)
@click.option("--max_new_tokens", type=click.IntRange(min=1), help="Longest answer; default: 256.")
@click.option("--greedy", is_flag=True, help="Always the likeliest token: the same answer each time.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), help="How freely tokens are drawn; default: the model's own."
)
@click.option("--top_p", type=click.FloatRange(0, 1, min_open=True), help="Draw from this share of the probability.")
@click.option("--top_k", type=click.IntRange(min=0), help="Draw from so many of the likeliest tokens; 0: all.")
@click.option("--repetition_penalty", type=click.FloatRange(min=0, min_open=True), help="Above 1: repeats itself less.")
@click.option("--seed", type=int, help="The same answer each time, though drawn.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0: all processors.")
@common_options
def command(
    session: Any,
    model_name_or_path: str,
    prompt: str | None,
    system: str | None,
    adapters: tuple[str, ...],
    threads: int,
    **choices: Any,
) -> None:
    from coldpress.api import pressed
    from coldpress.runs.engine import Console
    from coldpress.serving.chat import Conversation
    from coldpress.serving.engine import Engine, check_choices, chosen_sampling

    named = dict(map(_named, adapters))
    check_choices(**choices)
    with session.busy():
        folder = pressed(model_name_or_path, session.store, Console(session.note, session.progress))
    sampling = chosen_sampling(folder, **choices)
    conversation = Conversation(Engine(folder, threads, named), system, sampling, next(iter(named), None))
    if prompt is not None:
        _answer(conversation, sys.stdin.read().strip() if prompt == "-" else prompt)
        return
    for line in _lines(conversation, session.store.root):
        if _COMMAND.fullmatch(line):
            if not _obey(conversation, line):
                return
        else:
            _answer(conversation, line)


def _named(adapter: str) -> tuple[str, Path]:
    name, equals, path = adapter.partition("=")
    if not equals or not name or not path:
        raise ColdpressError(
            f"--adapter: '{adapter}' is not NAME=PATH", hint=f"write --adapter {Path(adapter).stem}={adapter}"
        )
    return name, Path(path).expanduser()


def _answer(conversation: Conversation, question: str) -> None:
    """The answer on stdout as it is made, what there is to say about it on stderr.

    On a terminal, Ctrl-C ends it early.
    """
    pieces = conversation.ask(question)
    try:
        _written(pieces)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        click.echo("\n[stopped; Ctrl-C again ends the conversation]", err=True)
    finally:
        pieces.close()
    turn = conversation.last
    if turn is None:
        return
    if turn.forgotten:
        click.echo(f"[the context was full: the oldest {turn.forgotten} turns were forgotten]", err=True)
    if turn.is_cut:
        click.echo("[cut here; --max_new_tokens gives answers more room]", err=True)
    click.echo(turn.speed, err=True)


def _written(pieces: Iterator[str]) -> None:
    """Plain text into files and pipes; on a terminal, Markdown as it is meant."""
    if not sys.stdout.isatty():
        for piece in pieces:
            click.echo(piece, nl=False)
        click.echo()
        return
    from rich.live import Live
    from rich.markdown import Markdown

    text = ""
    with Live(Markdown(text), refresh_per_second=8, vertical_overflow="visible") as live:
        for piece in pieces:
            text += piece
            live.update(Markdown(text))


def _obey(conversation: Conversation, line: str) -> bool:
    """Do what a line with a slash asks for; False for the end. A wrong one is said, and the conversation goes on."""
    match = _COMMAND.fullmatch(line)
    assert match is not None
    name, rest = match[1], (match[2] or "").strip()
    if name not in _COMMANDS:
        click.echo(f"there is no {name}; {did_you_mean(name, _COMMANDS) or '/help lists what there is'}", err=True)
        return True
    try:
        _DONE[name](conversation, rest)
    except ColdpressError as error:
        click.echo(f"{error.message}; {error.hint}", err=True)
    return name != "/exit"


def _help(conversation: Conversation, rest: str) -> None:
    for name, what in _COMMANDS.items():
        click.echo(f"{name:<9} {what}", err=True)


def _switch(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.use(None if rest == "none" else rest)
    click.echo(f"[{conversation.adapter or 'no adapter'} answers]", err=True)


def _instruct(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.system = rest
    click.echo(f"[instructions: {conversation.system or 'none'}]", err=True)


def _reset(conversation: Conversation, rest: str) -> None:
    conversation.reset()
    click.echo("[forgotten]", err=True)


_DONE: dict[str, Callable[[Conversation, str], None]] = {
    "/help": _help,
    "/adapter": _switch,
    "/system": _instruct,
    "/reset": _reset,
    "/exit": lambda conversation, rest: None,
}


def _lines(conversation: Conversation, cache: Path) -> Iterator[str]:
    """What is typed, line by line, to the end; on a terminal with line editing, and remembered for the next time."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    names = f" ({', '.join(conversation.engine.adapters)})" if conversation.engine.adapters else ""
    click.echo(
        f"ask; /help says what else can be typed{', /adapter lets another one answer' if names else ''}{names}",
        err=True,
    )
    with _history(cache / "chat_history"):
        interrupted = False
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                click.echo(err=True)
                return
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                click.echo("\n[Ctrl-C again ends the conversation]", err=True)
                continue
            interrupted = False
            if line:
                yield line


@contextmanager
def _history(file: Path) -> Iterator[None]:
    """Lines that were typed earlier come back with the arrow keys, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    readline.set_history_length(_REMEMBERED_LINES)
    with suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
