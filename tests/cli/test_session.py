"""What a terminal shows while something is done."""

from __future__ import annotations

import logging
import time

import pytest

from coldpress.cli import session as terminal
from coldpress.cli.session import Session
from coldpress.jobs.store import Store


@pytest.fixture
def impatient(monkeypatch, tmp_path):
    """A session that gets tired of silence a hundred times sooner."""
    monkeypatch.setattr(terminal, "_PATIENCE_ON_TERMINAL", 0.01)
    monkeypatch.setattr(terminal, "_PATIENCE", 0.1)
    return lambda level=2: Session(level, Store(tmp_path))


def test_nobody_waits_in_silence_where_there_is_no_terminal(impatient, capsys):
    with impatient() as session, session.busy():
        session.progress("quantize: layer 3", 3, 10)
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("quantize: layer 3: 30%, ") and line.endswith(" s so far") for line in lines)


def test_silence_that_was_asked_for_is_kept_and_so_is_that_after_the_work(impatient, capsys):
    with impatient(4) as session, session.busy():
        time.sleep(0.2)
    with impatient() as session:
        with session.busy():
            pass
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_locks_and_requests_of_libraries_are_told_at_no_level(impatient):
    impatient(0)
    for name in ("filelock", "httpx", "urllib3"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
