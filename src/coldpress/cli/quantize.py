"""``quantize``: from a model to a quantized Hugging Face folder, calibrated and measured."""

from __future__ import annotations

from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import (
    Choice,
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
from coldpress.passes.quantize import ALGORITHMS, Quantize
from coldpress.passes.rotate import ROTATIONS

_ALGORITHM_HELP = (
    "How weights are rounded; best is AWQ scales, GPTQ and a polish, with tokens weighed by what they matter; "
    "quarot and spinquant are a rotation before it. "
    "[default: best]"
)


@click.command("quantize", help=VERBS["quantize"])
@model_option
@script_options
@output_option("models/quantized")
@click.option("--algorithm", type=Choice((*ALGORITHMS, *ROTATIONS)), help=_ALGORITHM_HELP)
@rotation_option
@calibration_options
@pass_options(Quantize, leave_out=("algorithm", "trust_remote_code", "if_possible"))
@target_options
@verify_options
@click.option("--trust_remote_code", is_flag=True, help="Run code that comes with the model.")
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--dry_run", is_flag=True, help="Check everything, print the resolved workflow and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def command(session: Any, overwrite: bool, dry_run: bool, as_json: bool, **arguments: Any) -> int:
    from coldpress.api import quantize_workflow
    from coldpress.cli.finish import run_and_show, show_resolved

    workflow = quantize_workflow(**given(arguments))
    if dry_run:
        return show_resolved(session, workflow, as_json, ("model",))
    return run_and_show(session, workflow, overwrite, as_json)
