"""``benchmark``: generation speed of models, taken in turns."""

from __future__ import annotations

from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import common_options, target_options


@click.command("benchmark", help=VERBS["benchmark"])
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="How often each model has its turn."
)
@click.option(
    "--prompt_tokens", type=click.IntRange(min=8), default=256, show_default=True, help="Length of the prompt."
)
@click.option(
    "--new_tokens", type=click.IntRange(min=2), default=64, show_default=True, help="Tokens generated after it."
)
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@common_options
def command(session: Any, models: tuple[str, ...], as_json: bool, **arguments: Any) -> None:
    from coldpress import parts
    from coldpress.comparison import benchmark
    from coldpress.report.terminal import comparison
    from coldpress.target import resolve_target

    target = resolve_target(**{key: arguments.pop(key) for key in ("device", "provider", "threads")})
    rows = benchmark(models, target=target, console=session.console, **arguments)
    if as_json:
        session.data(rows)
    else:
        session.show(comparison(rows, parts.find("metrics", "generation").values))
