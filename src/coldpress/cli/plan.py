"""``plan``: what ``auto-opt`` with the same options would cost."""

from __future__ import annotations

from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.auto_opt import ALGORITHM_HELP, PRESS_ALGORITHMS
from coldpress.cli.options import (
    Choice,
    calibration_options,
    common_options,
    given,
    model_option,
    pass_options,
    target_options,
    verify_options,
)
from coldpress.passes.press import Press
from coldpress.passes.quantize import Quantize


@click.command("plan", help=VERBS["plan"])
@model_option
@click.option("--algorithm", type=Choice(PRESS_ALGORITHMS), help=ALGORITHM_HELP)
@pass_options(Press, leave_out=("algorithm", "trust_remote_code"))
@calibration_options
@pass_options(Quantize, only=("data",))
@target_options
@verify_options
@click.option("--trust_remote_code", is_flag=True, help="Run code that comes with the model.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@common_options
def command(session: Any, as_json: bool, **arguments: Any) -> int:
    from coldpress.api import optimize_workflow
    from coldpress.cli.finish import plan_and_show

    return plan_and_show(session, optimize_workflow(**given(arguments)), as_json)
