"""``run-pass``: one pass on one model; ``run-pass NAME --help`` shows the pass's own options."""

from __future__ import annotations

import sys
from typing import Any

import click

from coldpress import parts
from coldpress.cli import VERBS
from coldpress.cli.options import (
    calibration_options,
    common_options,
    given,
    model_option,
    output_option,
    pass_options,
    target_options,
)
from coldpress.workflow.calibration_data import CALIBRATING


class _Passes(click.Group):
    """Each pass is a command whose options are the pass's fields; its name may stand behind ``--pass_name``, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_named = bool(args) and args[0].replace("-", "_") in ("__pass", "__pass_name", "_p")
        return super().parse_args(ctx, args[1:] if is_named else args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(parts.names("passes"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if ctx.resilient_parsing and cmd_name not in parts.names("passes"):
            return None
        part = parts.find("passes", cmd_name)
        of_data = calibration_options if parts.file_name(cmd_name) in CALIBRATING else lambda command: command

        @click.command(cmd_name, help=_described(part))
        @model_option
        @output_option("models/run-pass")
        @of_data
        @pass_options(part)
        @target_options
        @click.option(
            "--no_verify",
            is_flag=True,
            help="Open the result, but do not compare it with the ONNX model it was made from.",
        )
        @click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
        @click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
        @common_options
        def command(session: Any, overwrite: bool, as_json: bool, **arguments: Any) -> int:
            return _run(session, cmd_name, overwrite, as_json, given(arguments))

        return command


def _described(part: type[Any]) -> str:
    """The docstring of a pass; that of its module where the class has only the one of every dataclass, its
    signature."""
    text = part.__doc__ or ""
    return (sys.modules[part.__module__].__doc__ or "") if text.startswith(f"{part.__name__}(") else text


def _run(session: Any, name: str, overwrite: bool, as_json: bool, arguments: dict[str, Any]) -> int:
    from coldpress.api import pass_workflow
    from coldpress.cli.finish import run_and_show

    return run_and_show(session, pass_workflow(name, **arguments), overwrite, as_json)


command = _Passes("run-pass", help=VERBS["run-pass"])
