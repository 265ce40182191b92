"""``tune-session-params``: the pass ``session_params_tuning`` on one model."""

from __future__ import annotations

from typing import Any

import click

from coldpress import parts
from coldpress.cli import VERBS
from coldpress.cli.options import common_options, given, model_option, output_option, pass_options, target_options


@click.command("tune-session-params", help=VERBS["tune-session-params"])
@model_option
@output_option("models/tuned")
@pass_options(parts.find("passes", "session_params_tuning"), leave_out=("data", "extra_session_config"))
@target_options
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def command(session: Any, overwrite: bool, as_json: bool, **arguments: Any) -> int:
    from coldpress.api import pass_workflow
    from coldpress.cli.finish import run_and_show

    workflow = pass_workflow("session_params_tuning", **given(arguments))
    return run_and_show(session, workflow, overwrite, as_json)
