"""``report``: what is known of results, one in full or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import PATH, common_options


@click.command("report", help=VERBS["report"])
@click.argument("folders", type=PATH, nargs=-1, required=True, metavar="FOLDER...")
@click.option("--open", "opens", is_flag=True, help="Show report.html of each in a browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@common_options
def command(session: Any, folders: tuple[str, ...], opens: bool, as_json: bool) -> None:
    from coldpress.report.terminal import comparison, points, side_by_side, summary
    from coldpress.runs.report_data import read_report

    reports = {folder: read_report(Path(folder)) for folder in folders}
    if as_json:
        session.data(reports if len(reports) > 1 else reports[folders[0]])
    elif len(reports) > 1:
        session.show(comparison(*side_by_side(reports)))
    else:
        [report] = reports.values()
        if (searched := points(report)) is not None:
            session.show(searched)
        session.show(summary(report))
    if opens:
        for folder in reports:
            click.launch((Path(folder) / "report.html").absolute().as_uri())
