"""Checkpoints of a training: which are complete, which are good, and whether there is room for them."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coldpress.errors import WORK_FAILED, ColdpressError

#: what the Trainer writes last into a checkpoint
_LAST_FILE = "trainer_state.json"
_PREFIX = "checkpoint-"


def steps_in(folder: Path) -> list[int]:
    """The steps of which ``folder`` has complete checkpoints, in order.

    What a killed run left half-written is removed.
    """
    found = []
    for entry in folder.glob(f"{_PREFIX}*"):
        if _is_complete(entry):
            found.append(int(entry.name.removeprefix(_PREFIX)))
        else:
            shutil.rmtree(entry, ignore_errors=True)  # another process of this training may do so, too
    return sorted(found)


def checkpoint(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step}"


def last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint; None without one."""
    steps = steps_in(folder)
    return checkpoint(folder, steps[-1]) if steps else None


def last_good(folder: Path, step: int) -> Path | None:
    """The last checkpoint up to ``step``. Those after it are removed, so that the next run does not go on from them."""
    for known in steps_in(folder):
        if known > step:
            shutil.rmtree(checkpoint(folder, known))
    return last_checkpoint(folder)


def check_space(folder: Path, trained: int, kept: int) -> None:
    """Raise ColdpressError unless there is room for ``kept`` checkpoints, and the one that is written before one goes.

    ``trained``: parameters, each with the two moments of Adam, in float32.
    """
    needed, free = 12 * trained * (kept + 1), shutil.disk_usage(folder).free
    if needed > free:
        raise ColdpressError(
            f"no space for checkpoints: {kept + 1} of them take {needed / 1e6:,.0f} MB, and {folder} has"
            f" {free / 1e6:,.0f} MB",
            hint="free some, name another disk with --cache_dir, or write none with --save_strategy no",
            exit_code=WORK_FAILED,
        )


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Say plainly that the disk is full, and which checkpoint is left."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the system's error
        if not (getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)):
            raise
        left = last_checkpoint(folder)
        raise ColdpressError(
            f"no space left for a checkpoint in {folder};"
            f" {f'the last one is {left.name}' if left else 'there is none yet'}",
            hint="free some and run it again: it goes on from the last checkpoint",
            exit_code=WORK_FAILED,
        ) from error


def _is_complete(entry: Path) -> bool:
    try:
        json.loads((entry / _LAST_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return entry.name.removeprefix(_PREFIX).isdigit()
