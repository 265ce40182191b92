"""What a run logs, also in a file beside its output: lines with time and level, those of libraries too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from coldpress.environment import without_secrets
from coldpress.workflow import Workflow

Say = Callable[[str], None]
LEVELS = {0: logging.DEBUG, 1: logging.INFO, 2: logging.WARNING, 3: logging.ERROR, 4: logging.CRITICAL}
_STEPS = 1


def log_file(workflow: Workflow) -> Path:
    """Where the log of a workflow is written: beside its output folder, which is complete or absent."""
    output = Path(workflow.output) if workflow.output else Path("coldpress")
    return output.with_name(f"{output.name}.log")


@contextmanager
def logged(workflow: Workflow, say: Say) -> Iterator[Say]:
    """``say``, which also writes to the workflow's log when that is asked for; so is the error that ends the run."""
    if not workflow.run.log_to_file:
        yield say
        return
    file = log_file(workflow)
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(LEVELS[_STEPS if workflow.run.log_level is None else workflow.run.log_level])
    logging.getLogger().addHandler(handler)  # what libraries log

    def write(level: int, line: str) -> None:
        if level >= handler.level:
            handler.handle(logging.LogRecord("coldpress", level, "", 0, without_secrets(line), None, None))

    def both(line: str) -> None:
        say(line)
        write(logging.INFO, line)

    def ended(kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            write(logging.ERROR, str(error))

    with ExitStack() as stack:
        stack.callback(handler.close)
        stack.callback(logging.getLogger().removeHandler, handler)
        stack.push(ended)
        yield both
