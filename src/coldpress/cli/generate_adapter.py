"""``generate-adapter``: an ONNX model with an adapter in it becomes its base with LoRA slots, and an adapter file."""

from __future__ import annotations

from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import Choice, common_options, model_option, output_option


@click.command("generate-adapter", help=VERBS["generate-adapter"])
@model_option
@output_option("models/generate-adapter")
@click.option("--adapter_type", type=Choice(("lora",)), default="lora", show_default=True, help="Kind of the adapter.")
@click.option(
    "--adapter_format",
    type=Choice(("onnx_adapter",)),
    default="onnx_adapter",
    show_default=True,
    help="Form of the file.",
)
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def command(
    session: Any, overwrite: bool, as_json: bool, adapter_type: str, adapter_format: str, **arguments: Any
) -> int:
    from coldpress.api import pass_workflow
    from coldpress.cli.finish import run_and_show

    options = {"adapter_type": adapter_type, "save_format": adapter_format}
    return run_and_show(session, pass_workflow("extract_adapters", **arguments, **options), overwrite, as_json)
