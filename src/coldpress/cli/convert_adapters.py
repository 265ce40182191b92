"""``convert-adapters``: a PEFT folder as one file of named tensors, transposed and scaled as a graph's inputs take
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import PATH, Choice, common_options
from coldpress.errors import ColdpressError

FORMATS = ("onnx_adapter", "safetensors", "numpy")


@click.command("convert-adapters", help=VERBS["convert-adapters"])
@click.option("-a", "--adapter_path", type=PATH, required=True, metavar="FOLDER", help="PEFT folder.")
@click.option(
    "-o",
    "--output_path",
    type=PATH,
    required=True,
    metavar="FILE",
    help="File to write; its suffix is added if it has none.",
)
@click.option(
    "-m",
    "--model_name_or_path",
    type=PATH,
    metavar="MODEL",
    help="Pressed model whose slots the file shall fill. [default: one pair for each module, by its Hugging Face name]",
)
@click.option(
    "-f", "--adapter_format", type=Choice(FORMATS), default="onnx_adapter", show_default=True, help="Form of the file."
)
@click.option(
    "--dtype", type=Choice(("float32", "float16")), help="Type of the numbers. [default: float32, or that of the slots]"
)
@click.option("--quantize_int4", is_flag=True, help="Olive's; refused, as slots take floats.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@common_options
def command(session: Any, adapter_path: str, output_path: str, as_json: bool, **arguments: Any) -> int:
    from coldpress.runs.convert_adapters import convert

    if arguments.pop("quantize_int4"):
        raise ColdpressError(
            "--quantize_int4: slots take floats; an adapter is small beside its base",
            hint="leave it out, or use --dtype float16",
        )
    facts = convert(Path(adapter_path), Path(output_path), **arguments)
    if as_json:
        session.data(facts)
    else:
        session.text("{file}: {modules} modules, rank {ranks}, {bytes:,} bytes".format_map(facts))
    return 0
