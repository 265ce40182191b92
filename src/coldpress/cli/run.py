"""``run``: a workflow file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import common_options


@click.command("run", help=VERBS["run"])
@click.option("--config", "--run_config", "config", required=True, help="The workflow file (YAML or JSON).")
@click.option("-m", "--model_name_or_path", "model", help="Replaces the file's model.")
@click.option("-o", "--output_path", "output", help="Replaces the file's output folder.")
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--dry_run", is_flag=True, help="Check the file, show the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def command(session: Any, config: str, overwrite: bool, dry_run: bool, as_json: bool, **replaced: Any) -> int:
    from coldpress.cli.finish import plan_and_show, run_and_show
    from coldpress.workflow import load_workflow

    workflow = load_workflow(config)
    workflow = replace(workflow, **{name: value for name, value in replaced.items() if value is not None})
    if dry_run:
        return plan_and_show(session, workflow, as_json)
    return run_and_show(session, workflow, overwrite, as_json)
