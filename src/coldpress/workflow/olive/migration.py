"""A configuration of Olive's rewritten as a workflow file, with what differs as comments."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from coldpress import __version__
from coldpress.errors import ColdpressError
from coldpress.workflow.documents import read_document
from coldpress.workflow.olive.reading import grouped
from coldpress.workflow.olive.translation import Translation, is_olive, translate


def migrate(file: Path) -> tuple[Translation, list[ColdpressError]]:
    """What becomes of a file, and its problems with the lines they stand on."""
    document = read_document(file)
    if not is_olive(document.data):
        raise ColdpressError(
            f"{file} is no configuration of Olive", hint="a workflow of coldpress's own form runs as it is"
        )
    translation = translate(document.data)
    return translation, [document.located(problem) for problem in translation.problems]


def rendered(translation: Translation, source: Path, as_json: bool = False) -> str:
    """The text of the new file; JSON has no comments."""
    import yaml

    if as_json:
        return json.dumps(translation.workflow, indent=2, ensure_ascii=False) + "\n"
    head = [f"# Made from {source.name} by coldpress {__version__}; run it with: coldpress run --config FILE"]
    if translation.notes:
        head += ["#", "# What differs from Olive:"]
    for note in grouped(translation.notes):
        head += textwrap.wrap(note, 110, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False)
    body = yaml.safe_dump(translation.workflow, sort_keys=False, allow_unicode=True, width=110)
    return "\n".join(head) + "\n\n" + body
