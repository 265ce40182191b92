"""``benchmark``: speed of models, taken in turns."""

from __future__ import annotations

from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import Choice, common_options, given, models_option, target_options


@click.command("benchmark", help=VERBS["benchmark"])
@models_option
@click.option(
    "--metric",
    type=Choice(("generation", "latency")),
    default="generation",
    show_default=True,
    help="What is timed: answers of a chat model, or single runs of any model.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="How often each model has its turn."
)
@click.option("--prompt_tokens", type=click.IntRange(min=8), help="Length of the prompt. [default: 256]")
@click.option("--new_tokens", type=click.IntRange(min=2), help="Tokens generated after it. [default: 64]")
@click.option("--repeats", type=click.IntRange(min=1), help="Timed runs of a model when it has its turn.")
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@common_options
def command(session: Any, models: tuple[str, ...], metric: str, rounds: int, as_json: bool, **arguments: Any) -> None:
    from coldpress import parts
    from coldpress.report.terminal import comparison
    from coldpress.runs.evaluation import benchmark
    from coldpress.target import resolve_target

    target = resolve_target(**{key: arguments.pop(key) for key in ("device", "provider", "threads")})
    settings = given(arguments)
    with session.busy():
        rows = benchmark(
            models,
            metric=metric,
            rounds=rounds,
            target=target,
            store=session.store,
            console=session.console,
            **settings,
        )
    if as_json:
        session.data(rows)
    else:
        session.show(comparison(rows, parts.find("metrics", metric).values))
