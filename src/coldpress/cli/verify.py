"""``verify``: compare a pressed model with the model it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import (
    MODEL,
    common_options,
    eval_data_option,
    model_option,
    target_options,
    verify_memory_option,
)
from coldpress.errors import WORSE_THAN_TOLERANCE


@click.command("verify", help=VERBS["verify"])
@model_option
@click.option("--source", type=MODEL, help="The model it was made from; default: the one its report names.")
@click.option("--tolerance", help="Limits, such as 0.1 (KL) or kl=0.1,ppl=1.05.")
@eval_data_option
@verify_memory_option
@click.option("--trust_remote_code", is_flag=True, help="Run code that comes with the source.")
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@common_options
def command(session: Any, model_name_or_path: str, source: str | None, as_json: bool, **arguments: Any) -> int:
    from coldpress.runs.engine import verify_pressed
    from coldpress.runs.report_data import source_in_report
    from coldpress.runs.verification import VERIFIED
    from coldpress.target import resolve_target
    from coldpress.workflow import Verify, Workflow

    target = resolve_target(**{key: arguments.pop(key) for key in ("device", "provider", "threads")})
    original = source or source_in_report(Path(model_name_or_path))
    request = Verify(True, arguments["tolerance"], arguments["eval_data"], arguments["verify_memory"])
    workflow = Workflow(original, target=target, verify=request, trust_remote_code=arguments["trust_remote_code"])
    with session.busy():
        verdict = verify_pressed(model_name_or_path, workflow, session.store, session.console)
    if as_json:
        session.data({"verdict": verdict.verdict, "reasons": verdict.reasons, **verdict.numbers})
    else:
        for name in dict.fromkeys((*verdict.limits, "perplexity", "source_perplexity")):
            if name in verdict.numbers:
                click.echo(f"{name:<22} {verdict.numbers[name]:.4f}")
        click.echo(": ".join([verdict.verdict, "; ".join(verdict.reasons)]) if verdict.reasons else verdict.verdict)
    return 0 if verdict.verdict == VERIFIED else WORSE_THAN_TOLERANCE
