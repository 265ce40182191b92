"""``run``: a workflow file, with flags that override it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import DEVICE, MODEL, PATH, PROVIDER, given, log_level_option, verify_options
from coldpress.errors import ColdpressError

_RUNNING = ("cache_dir", "clean_cache", "log_level", "log_to_file")
_TARGET = ("device", "provider", "threads")


@click.command("run", help=VERBS["run"])
@click.argument("file", type=PATH, required=False)
@click.option(
    "--config", "--run_config", "config", type=PATH, help="The workflow file (YAML or JSON), if it is not named before."
)
@click.option("-m", "--model_name_or_path", type=MODEL, help="Replaces the file's model.")
@click.option("-o", "--output_path", type=PATH, help="Replaces the file's output folder.")
@click.option("--device", type=DEVICE, help="Replaces the file's device: cpu, gpu or npu.")
@click.option("--provider", type=PROVIDER, help="Replaces the file's execution provider.")
@click.option("--threads", type=click.IntRange(min=0), help="Replaces the file's threads; 0: all processors.")
@click.option("--system", help="Replaces the file's system: local is this machine.")
@verify_options
@click.option("--trust_remote_code", is_flag=True, default=None, help="Run code that comes with the model.")
@click.option("--cache_dir", type=PATH, help="Where finished results are kept.")
@click.option("--clean_cache", is_flag=True, default=None, help="Use no finished results, do everything anew.")
@log_level_option(None)
@click.option("--log_to_file", is_flag=True, default=None, help="Write what is logged into OUTPUT.log, too.")
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--dry_run", is_flag=True, help="Check everything, print the resolved workflow and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def command(
    file: str | None, config: str | None, overwrite: bool, dry_run: bool, as_json: bool, debug: bool, **flags: Any
) -> int:
    from coldpress.cli.finish import run_and_show, show_resolved
    from coldpress.cli.session import Session
    from coldpress.workflow.file import load_workflow
    from coldpress.workflow.olive.reading import grouped

    notes: list[str] = []
    workflow = _overridden(load_workflow(_the_file(file, config), notes.append), given(flags))
    level = 2 if workflow.run.log_level is None else workflow.run.log_level
    with Session(level, workflow.run.open_store()) as session:
        for note in grouped(notes):
            session.note(note)
        if dry_run:
            return show_resolved(session, workflow, as_json, ("model",) if flags["model_name_or_path"] else ())
        return run_and_show(session, workflow, overwrite, as_json)


def _the_file(file: str | None, config: str | None) -> str:
    """The one workflow file that was named."""
    if file is not None and config is not None:
        raise ColdpressError(f"two workflow files were named: {file} and {config}", hint="coldpress run takes one")
    named = file if config is None else config
    if named is None:
        raise ColdpressError("no workflow file was named", hint="coldpress run FILE, where FILE is YAML or JSON")
    return named


def _overridden(workflow: Any, flags: dict[str, Any]) -> Any:
    """The workflow with what flags say in place of what the file says."""
    from coldpress.target import resolve_target
    from coldpress.workflow import Place

    changed: dict[str, Any] = {}
    target = {name: flags.pop(name) for name in _TARGET if name in flags}
    if target:
        kept = {"provider": workflow.target.provider} if "device" not in target else {}
        changed["target"] = resolve_target(**{"threads": workflow.target.threads, **kept, **target})
    running = {name: flags.pop(name) for name in _RUNNING if name in flags}
    changed["run"] = replace(workflow.run, **running)
    if "system" in flags:
        changed["system"] = Place(flags.pop("system"))
        changed["system"].make()
    changed["verify"] = _verify(workflow.verify, flags)
    names = {"model_name_or_path": "model", "output_path": "output"}
    return replace(workflow, **changed, **{names.get(name, name): value for name, value in flags.items()})


def _verify(verify: Any, flags: dict[str, Any]) -> Any:
    """Takes the flags of verification out of ``flags``."""
    changed: dict[str, Any] = {}
    if flags.pop("no_verify", False):
        changed["enabled"] = False
    if "tolerance" in flags:
        changed["tolerance"] = flags.pop("tolerance")
    if "eval_data" in flags:
        changed["data"] = tuple(flags.pop("eval_data"))
    if "verify_memory" in flags:
        changed["max_memory"] = flags.pop("verify_memory")
    return replace(verify, **changed)
