"""The end of every verb that makes a model: run the workflow, show what came of it."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from coldpress.workflow import Workflow


def run_and_show(session: Any, workflow: Workflow, overwrite: bool, as_json: bool) -> int:
    """Run a workflow and print its summary (or its report as JSON); returns the exit code."""
    from coldpress.runs.engine import run

    with session.busy():
        report = run(
            workflow, store=session.store, console=session.console, overwrite=overwrite, command=session.command
        )
    if as_json:
        session.data(report.data)
    else:
        from coldpress.report.terminal import onward, points, summary
        from coldpress.runs.forecast import better

        output = str(report.model.path if workflow.output is None else workflow.output)
        finer = None if report.up_to_date else better(workflow, report.data)
        if (searched := points(report.data)) is not None:
            session.show(searched)
        session.show(summary(report.data))
        session.show(onward(report.data, output, session.elapsed, finer, is_new=not report.up_to_date))
    return report.exit_code


def plan_and_show(session: Any, workflow: Workflow, as_json: bool) -> int:
    """Print what a workflow would cost."""
    from coldpress.runs.forecast import plan, table

    planned = plan(workflow, say=session.say)
    if as_json:
        session.data(planned)
    else:
        session.show(table(planned))
    return 0


def show_resolved(session: Any, workflow: Workflow, as_json: bool, needed: Container[str]) -> int:
    """Print a workflow with all its parameters, after every check that needs no work; see
    `coldpress.runs.engine.dry_run`."""
    from coldpress.parts.schema import plain
    from coldpress.runs.engine import dry_run

    complete = dry_run(workflow, session.note, needed)
    for doubt in _doubts(complete):
        session.note(doubt)
    if as_json:
        session.data(plain(complete))
    else:
        session.text(complete.to_yaml())
    return 0


def _doubts(workflow: Workflow) -> Iterator[str]:
    """What can be done as it is asked for, but is perhaps not meant."""
    if not workflow.passes:
        yield "there are no passes, so the result is the model as it is"
    if workflow.output is None:
        yield "there is no output folder, so the result stays in the cache"
    if not workflow.target.is_here:
        yield f"{workflow.target.provider} is not installed here, so the result is neither run nor verified"
