"""What a verb needs of the terminal: lines on stderr, a progress bar that disappears, data on stdout."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from coldpress.environment import without_secrets
from coldpress.jobs.store import Store
from coldpress.runs.engine import Console
from coldpress.runs.log import LEVELS

#: libraries that tell of each lock and each request, which nobody wants to know at any level
_NOISY = ("httpx", "httpcore", "filelock", "urllib3", "asyncio", "huggingface_hub", "fsspec", "matplotlib", "PIL")
#: seconds of silence until a terminal shows that work goes on, and until a line says so elsewhere
_PATIENCE_ON_TERMINAL, _PATIENCE = 1.0, 10.0


class Session:
    """One call of the command line; a context manager that cleans the progress bar away."""

    def __init__(self, log_level: int, store: Store):
        self.log_level = log_level
        self.store = store
        self._bar: Any = None
        self._task: tuple[str, Any] | None = None
        self._doing = ("starting", 0.0, 0.0)
        self._started = self._spoke = time.monotonic()
        self._turn = threading.RLock()
        logging.basicConfig(level=LEVELS[log_level], handlers=[_Logged()], format="%(message)s")
        for name in _NOISY:
            logging.getLogger(name).setLevel(max(logging.WARNING, LEVELS[log_level]))
        logging.captureWarnings(True)  # which are those of libraries, about their own insides
        logging.getLogger("py.warnings").setLevel(LEVELS[log_level] if log_level == 0 else logging.ERROR)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *reason: Any) -> None:
        self._stop_bar()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While something is done nobody waits in silence: a bar says so on a terminal, a line every ten seconds
        elsewhere."""
        over = threading.Event()
        self._started = self._spoke = time.monotonic()
        if self.log_level <= 2:
            threading.Thread(target=self._beat, args=(over,), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            self._stop_bar()

    def _beat(self, over: threading.Event) -> None:
        is_terminal = sys.stderr.isatty()
        while not over.wait(_PATIENCE_ON_TERMINAL):
            with self._turn:
                silence = time.monotonic() - self._spoke
                if over.is_set():
                    return
                if is_terminal and self._bar is None and silence >= _PATIENCE_ON_TERMINAL:
                    self.progress(*self._doing)
                elif not is_terminal and silence >= _PATIENCE:
                    self._spoke = time.monotonic()
                    click.echo(self._how_far(), err=True)

    def _how_far(self) -> str:
        what, done, total = self._doing
        share = f" {done / total:.0%}," if total else ""
        return f"{what}:{share} {time.monotonic() - self._started:.0f} s so far"

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started

    @property
    def console(self) -> Console:
        return Console(self.say, self.progress)

    @property
    def command(self) -> str:
        return shlex.join(["coldpress", *sys.argv[1:]])

    def say(self, line: str) -> None:
        """A finished step; shown at log level 1 and below, and on a terminal."""
        if self.log_level <= 1 or (sys.stderr.isatty() and self.log_level <= 2):
            self._stop_bar()
            click.echo(line, err=True)

    def note(self, line: str) -> None:
        """Something that the user should know before the work; shown at log level 2 and below."""
        if self.log_level <= 2:
            self._stop_bar()
            click.echo(_as_note(line), err=True)

    def progress(self, what: str, done: float, total: float) -> None:
        """How far the current step is, with the time left; only on a terminal.

        What stands behind a colon in ``what`` may change while the step goes on.
        """
        with self._turn:
            self._doing = (what, done, total)
            if not sys.stderr.isatty() or self.log_level > 2:
                return
            step = what.partition(":")[0]
            if self._task is None or self._task[0] != step:
                self._stop_bar()
                self._task = (step, self._started_bar().add_task(what, total=total or None))
            self._bar.update(self._task[1], description=what, completed=done, total=total or None)

    def show(self, renderable: Any) -> None:
        """Something for people on stdout: a table, a verdict."""
        from rich.console import Console as RichConsole

        from coldpress.report.terminal import WIDTH_IN_FILES

        self._stop_bar()
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_IN_FILES
        RichConsole(soft_wrap=False, width=width).print(renderable)

    def data(self, value: Any) -> None:
        """Something for programs on stdout."""
        self._stop_bar()
        click.echo(json.dumps(value, indent=1, ensure_ascii=False))

    def text(self, text: str) -> None:
        """A document on stdout, as it is."""
        self._stop_bar()
        click.echo(text.rstrip())

    def _started_bar(self) -> Any:
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class _Left(TimeRemainingColumn):
            """The time left, of steps that say how far they are."""

            def render(self, task: Any) -> Text:
                return Text("left: ").append_text(super().render(task)) if task.time_remaining is not None else Text()

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            _Left(),
        )
        self._bar = Progress(*columns, console=RichConsole(stderr=True), transient=True)
        self._bar.start()
        return self._bar

    def _stop_bar(self) -> None:
        with self._turn:
            self._spoke = time.monotonic()
            if self._bar is not None:
                self._bar.stop()
                self._bar, self._task = None, None


def _as_note(line: str) -> str:
    return f"{click.style('note:', fg='yellow')} {line}"


class _Logged(logging.Handler):
    """What is logged, on stderr; coldpress' own warnings as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        line = without_secrets(self.format(record))
        is_own = record.name.partition(".")[0] == "coldpress" and record.levelno == logging.WARNING
        click.echo(_as_note(line) if is_own else line, err=True)
