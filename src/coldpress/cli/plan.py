"""``plan``: what ``auto-opt`` with the same options would cost."""

from __future__ import annotations

from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import common_options, given, model_option, pass_options, target_options, verify_options
from coldpress.passes.press import Press


@click.command("plan", help=VERBS["plan"])
@model_option
@pass_options(Press, leave_out=("trust_remote_code",))
@target_options
@verify_options
@click.option("--trust_remote_code", is_flag=True, help="Run code that comes with the model.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@common_options
def command(session: Any, as_json: bool, **arguments: Any) -> int:
    from coldpress.api import optimize_workflow
    from coldpress.cli.finish import plan_and_show

    return plan_and_show(session, optimize_workflow(**given(arguments)), as_json)
