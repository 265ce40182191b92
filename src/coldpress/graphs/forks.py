"""Work in forks of this process, which share its memory and wait for no lock of each other's interpreter; in threads
where there are no forks."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from typing import Any, TypeVar

from coldpress.errors import WORK_FAILED, ColdpressError

T = TypeVar("T")

_HERE = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1  # prctl(2)


def results(tasks: Sequence[Callable[[], T]], workers: int, *, in_threads: bool = False) -> Iterator[T]:
    """What the tasks give, in their order; they are done by ``workers`` forks or threads, or by this process if that is
    one.

    ColdpressError for a fork that dies.
    """
    if workers == 1 or len(tasks) == 1:
        yield from (task() for task in tasks)
    elif in_threads or not _HERE:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(lambda task: task(), tasks)
    else:
        with started(workers, tasks) as pool:
            try:
                yield from pool.map(_do, range(len(tasks)))
            except BrokenExecutor as error:
                raise ColdpressError(
                    "a process that did a part of the work was ended by something else",
                    hint="was there too little memory? fewer --threads need less",
                    exit_code=WORK_FAILED,
                ) from error


def started(workers: int, inherited: Sequence[Callable[[], Any]] = ()) -> Executor:
    """A pool of forks, which are there when the first work is given to it, and end with this process, however that
    ends."""
    if not _HERE:
        return ThreadPoolExecutor(workers)
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin, initargs=(inherited, os.getpid()))


#: of a fork: what it does by its number
_tasks: Sequence[Callable[[], Any]] = ()


def _begin(inherited: Sequence[Callable[[], Any]], parent: int) -> None:
    global _tasks  # noqa: PLW0603
    _tasks = inherited
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who waits for this process is interrupted, too, and ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _do(number: int) -> Any:
    return _tasks[number]()


def end_with_parent(parent: int) -> None:
    """This process is killed when the one it is a fork of ends, however that ends; now, where that has ended
    already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(WORK_FAILED)
