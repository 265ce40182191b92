"""``auto-opt``: from a model and a target to a verified ONNX model."""

from __future__ import annotations

from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import (
    Choice,
    Several,
    adapter_option,
    calibration_options,
    common_options,
    given,
    model_option,
    output_option,
    pass_options,
    rotation_option,
    script_options,
    target_options,
    verify_options,
)
from coldpress.passes.press import ALGORITHMS, Press
from coldpress.passes.quantize import Quantize
from coldpress.workflow.recipes import QUANTIZED_FIRST

PRESS_ALGORITHMS = (*ALGORITHMS, *QUANTIZED_FIRST)
ALGORITHM_HELP = (
    "How weights are rounded: rtn, kquant and hqq by themselves, in seconds; the others calibrated. "
    "[default: gptq for int4 where the model can be calibrated, else kquant]"
)


@click.command("auto-opt", cls=Several, help=VERBS["auto-opt"])
@model_option
@script_options
@adapter_option
@output_option("models/optimized")
@click.option("--algorithm", type=Choice(PRESS_ALGORITHMS), help=ALGORITHM_HELP)
@rotation_option
@pass_options(Press, leave_out=("algorithm", "trust_remote_code"))
@calibration_options
@pass_options(Quantize, only=("data",))
@click.option("--tune_session_params", is_flag=True, help="Find the fastest session options for the result, too.")
@target_options
@verify_options
@click.option("--trust_remote_code", is_flag=True, help="Run code that comes with the model.")
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--dry_run", is_flag=True, help="Show the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def command(session: Any, overwrite: bool, dry_run: bool, as_json: bool, **arguments: Any) -> int:
    from coldpress.api import optimize_workflow
    from coldpress.cli.finish import plan_and_show, run_and_show

    workflow = optimize_workflow(**given(arguments))
    if dry_run:
        return plan_and_show(session, workflow, as_json)
    return run_and_show(session, workflow, overwrite, as_json)
