"""``evaluate``: measure models, one table."""

from __future__ import annotations

from typing import Any

import click

from coldpress import parts
from coldpress.cli import VERBS
from coldpress.cli.options import MODEL, PATH, Completed, common_options, models_option, target_options


@click.command("evaluate", help=VERBS["evaluate"])
@models_option
@click.option(
    "--metric",
    "metrics",
    type=Completed(lambda: parts.names("metrics")),
    multiple=True,
    help="Name of a metric, with its defaults; may be repeated. See coldpress list.",
)
@click.option("--config", type=PATH, help="Workflow file whose metrics, with their parameters and data, are measured.")
@click.option("--source", type=MODEL, help="The model that the metric divergence compares with.")
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@common_options
def command(
    session: Any,
    models: tuple[str, ...],
    metrics: tuple[str, ...],
    config: str | None,
    source: str | None,
    as_json: bool,
    **target: Any,
) -> None:
    from coldpress.report.terminal import comparison
    from coldpress.runs.evaluation import evaluate, flat
    from coldpress.target import resolve_target
    from coldpress.workflow import Measure
    from coldpress.workflow.file import load_metrics

    asked: list[str | Measure] = [*metrics, *(load_metrics(config) if config else ())]
    chosen = asked or ["size", "divergence" if source else "perplexity"]
    with session.busy():
        rows = evaluate(
            models, chosen, source=source, target=resolve_target(**target), store=session.store, console=session.console
        )
    if as_json:
        session.data(rows)
    else:
        session.show(comparison(*flat(rows, chosen)))
