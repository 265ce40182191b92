"""Work that forks do comes back in order, with its errors, and forks do not outlive who waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import psutil
import pytest

from coldpress import ColdpressError
from coldpress.graphs.forks import results
from tests.waiting import runs, until


def refuse():
    raise ColdpressError("not this one", hint="another")


@pytest.mark.parametrize(("workers", "in_threads"), [(1, False), (3, False), (3, True)])
def test_results_come_in_the_order_of_the_tasks(workers, in_threads):
    tasks = [partial(pow, number, 2) for number in range(20)]
    assert list(results(tasks, workers, in_threads=in_threads)) == [number**2 for number in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_is_told_as_it_was_raised(workers):
    with pytest.raises(ColdpressError, match="not this one") as error:
        list(results([partial(pow, 2, 2), refuse, partial(pow, 3, 2)], workers))
    assert error.value.hint == "another"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_fork_that_dies_is_told():
    before = set(psutil.Process().children())  # other tests may have kept some
    with pytest.raises(ColdpressError, match="ended by something else"):
        list(results([lambda: os.kill(os.getpid(), signal.SIGKILL), partial(pow, 3, 2)], 2))
    assert set(psutil.Process().children()) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_forks_end_with_a_program_that_is_killed():
    program = "import signal; from coldpress.graphs.forks import results; list(results([signal.pause] * 2, 2))"
    child = subprocess.Popen([sys.executable, "-c", program])
    left = until(psutil.Process(child.pid).children, "forks")
    child.kill()
    child.wait()
    until(lambda: not any(map(runs, left)), "the end of the forks")
