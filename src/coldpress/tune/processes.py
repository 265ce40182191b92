"""One training on several devices, a process each, as ``accelerate launch`` starts them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes results; the others only train."""
    return int(os.environ.get("RANK", "0")) == 0


def use_own_gpu() -> None:
    """Let ``cuda`` mean the GPU of this process."""
    import torch

    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def alone(store: Any, workflow: Any) -> Iterator[tuple[Any, Any]]:
    """A store and a workflow for this process: the first has the user's; each other one throws away what it makes.

    All would wait for the lock of the first one otherwise, which waits for them to train with it.
    """
    if is_first():
        yield store, workflow
        return
    with tempfile.TemporaryDirectory(prefix="coldpress-rank-") as place:
        yield type(store)(place), replace(workflow, output=None)


@contextmanager
def shared_folder(own: Path, on_cpu: bool) -> Iterator[Path]:
    """The folder of the first process, where all find and leave their part of a checkpoint; none goes on before all are
    done."""
    if count() == 1:
        yield own
        return
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=on_cpu)
    [folder] = broadcast_object_list([str(own)])
    yield Path(folder)
    state.wait_for_everyone()
