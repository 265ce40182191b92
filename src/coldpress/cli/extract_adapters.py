"""``extract-adapters``: the LoRAs of a checkpoint such as Phi-4-multimodal's, one PEFT folder or file for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.convert_adapters import FORMATS
from coldpress.cli.options import PATH, Choice, common_options, model_option


@click.command("extract-adapters", help=VERBS["extract-adapters"])
@model_option
@click.option(
    "-o", "--output_path", type=PATH, default="models/adapters", show_default=True, help="Folder for the adapters."
)
@click.option(
    "-f",
    "--format",
    "form",
    type=Choice(("peft", *FORMATS)),
    default="peft",
    show_default=True,
    help="peft: a folder for each adapter; else a file.",
)
@click.option(
    "--dtype", type=Choice(("float32", "float16")), default="float32", show_default=True, help="Type of the numbers."
)
@click.option("--trust_remote_code", is_flag=True, help="Accept a model that brings code; none is run.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@common_options
def command(
    session: Any, model_name_or_path: str, output_path: str, as_json: bool, trust_remote_code: bool, **arguments: Any
) -> int:
    from coldpress.models.sources import find_model
    from coldpress.runs.convert_adapters import extract

    model = find_model(model_name_or_path, trust_remote_code=trust_remote_code, say=session.say)
    written = extract(model, Path(output_path), **arguments)
    if as_json:
        session.data(written)
    else:
        for facts in written:
            session.text("{name}: {path}, {modules} modules, rank {ranks}".format_map(facts))
    return 0
