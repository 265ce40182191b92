"""``lint``: what is slow or wasteful in an ONNX model, made anywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import PATH, common_options, model_option, target_options
from coldpress.errors import ColdpressError

if TYPE_CHECKING:
    from coldpress.models.model import Model
    from coldpress.runs.lint import Found, Saving
    from coldpress.target import Target


@click.command("lint", help=VERBS["lint"])
@model_option
@target_options
@click.option("--runtime", default=None, help="Version of ONNX Runtime to load it [default: the installed one].")
@click.option("--measure", is_flag=True, help="Measure what each remedy saves, on made-up inputs.")
@click.option("--fix", is_flag=True, help="Write the model with what can be put right, compared with this one.")
@click.option("-o", "--output_path", type=PATH, help="Where that goes [default: the model's name with -fixed].")
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@common_options
def command(session: Any, model_name_or_path: str, as_json: bool, **asked: Any) -> int:
    from coldpress.errors import WORSE_THAN_TOLERANCE
    from coldpress.models.sources import find_model
    from coldpress.runs.lint import lint
    from coldpress.target import resolve_target

    target = resolve_target(**{key: asked[key] for key in ("device", "provider", "threads")})
    model = find_model(model_name_or_path, say=session.say)
    found = list(lint(model, target, asked["runtime"]))
    saved = _savings(session, model, target, found) if asked["measure"] else []
    if as_json:
        findings = [{"rule": one.rule, "graph": one.graph, **dataclasses.asdict(one.finding)} for one in found]
        session.data({"findings": findings, "savings": list(map(dataclasses.asdict, saved))} if saved else findings)
    else:
        _show(found, saved)
        count = f"{len(found)} finding{'' if len(found) == 1 else 's'}" if found else "nothing found"
        click.echo(f"{count} in {Path(model_name_or_path).name or model_name_or_path} for {target.provider}", err=True)
    if asked["fix"]:
        return _fix(session, model_name_or_path, as_json, asked)
    if asked["output_path"] or asked["overwrite"]:
        raise ColdpressError("nothing is written without --fix", hint="add --fix, or leave --output_path out")
    return WORSE_THAN_TOLERANCE if any(one.finding.severity == "error" for one in found) else 0


def _savings(session: Any, model: Model, target: Target, found: list[Found]) -> list[Saving]:
    from coldpress.jobs.system import Executor
    from coldpress.runs.lint import savings
    from coldpress.workflow import Workflow

    executor = Executor(Workflow("").system.make(), session.store, session.console.progress)
    with session.busy():
        return savings(model, target, list(dict.fromkeys(one.rule for one in found)), executor)


def _show(found: list[Found], saved: list[Saving]) -> None:
    for one in found:
        finding = one.finding
        colour = "red" if finding.severity == "error" else "yellow"
        place = ": ".join(filter(None, (one.graph, finding.place)))
        click.echo(f"{click.style(finding.severity, fg=colour, bold=True)} {place}: {finding.problem} [{one.rule}]")
        click.echo(f"{click.style('fix', fg='cyan')} {finding.fix}")
    for saving in saved:
        times = f"{saving.before_ms:.3g} ms a run, {saving.after_ms:.3g} ms with it put right"
        click.echo(f"{saving.rule}: {times}{' (within the noise)' if saving.is_tie else ''}")


def _fix(session: Any, model: str, as_json: bool, asked: dict[str, Any]) -> int:
    """Write the model with what can be put right; 3 where it then computes something else."""
    from coldpress.api import pass_workflow
    from coldpress.cli.finish import run_and_show

    source = Path(model)
    output = asked["output_path"] or str(source.with_name(f"{source.stem if source.is_file() else source.name}-fixed"))
    where = {key: asked[key] for key in ("device", "provider", "threads")}
    given = {"runtime": asked["runtime"]} if asked["runtime"] else {}
    return run_and_show(session, pass_workflow("mend", model, output, **where, **given), asked["overwrite"], as_json)
