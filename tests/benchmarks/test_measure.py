from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package benchmarks is not installed

from benchmarks.measure import Claim, run, run_checked, spread, take_turns

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")

ALLOCATE = "block = bytearray(b'x') * 100_000_000; import time; time.sleep(0.3)"


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_memory_that_a_process_allocates_is_measured():
    used = run(python(ALLOCATE))
    assert used.exit_code == 0
    assert 100 <= used.peak_anonymous_mb < 150
    assert used.peak_resident_mb >= used.peak_anonymous_mb
    assert used.wall_s >= 0.3


def test_memory_of_parent_and_grandchild_is_added():
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ALLOCATE!r}])"
    used = run(python(f"block = bytearray(b'x') * 50_000_000; {nested}"))
    assert 150 <= used.peak_anonymous_mb < 210


def test_a_grandchild_whose_parent_has_ended_is_counted():
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ALLOCATE!r}])"
    waiting = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {orphan!r}]); time.sleep(1)"
    assert run(python(waiting)).peak_anonymous_mb >= 100


def test_a_mapped_file_is_resident_but_not_anonymous(tmp_path: Path):
    file = tmp_path / "mapped"
    file.write_bytes(bytes(100_000_000))
    code = (
        "import mmap, sys, time; file = open(sys.argv[1], 'rb'); "
        "view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); "
        "total = sum(view[::4096]); time.sleep(0.3)"
    )
    used = run(python(code, str(file)))
    assert used.peak_anonymous_mb < 50
    assert used.peak_resident_mb >= 100


def test_processor_time_of_children_is_counted():
    spin = "import time; until = time.process_time() + 0.4\nwhile time.process_time() < until: pass"
    used = run(python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"))
    assert 0.4 <= used.cpu_s < 5
    assert run(python("import time; time.sleep(0.5)")).cpu_s < 0.5


def test_processor_time_of_processes_outside_the_tree_is_told_apart():
    spin = "import time; until = time.process_time() + 2\nwhile time.process_time() < until: pass"
    outside = subprocess.Popen(python(spin))
    try:
        used = run(python("import time; time.sleep(1)"))
    finally:
        outside.kill()
        outside.wait()
    assert used.others_cpu_s >= 0.1
    assert used.cpu_s < 0.5


def test_the_command_gets_environment_and_folder_and_its_output_is_kept(tmp_path: Path):
    used = run(python("import os; print(os.environ['ASKED'], os.getcwd())"), {"ASKED": "yes"}, tmp_path)
    assert used.output.split() == ["yes", os.path.realpath(tmp_path)]


def test_a_failure_is_reported_and_ends_a_benchmark():
    failing = python("import sys; sys.exit('no such thing')")
    assert run(failing).exit_code == 1
    with pytest.raises(RuntimeError, match="ended with 1:\nno such thing"):
        run_checked(failing)


def test_measuring_leaves_no_thread_behind():
    before = threading.active_count()
    run(python("pass"))
    assert threading.active_count() == before


def test_turns_alternate_their_order():
    order: list[str] = []
    results = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(runs) for name, runs in results.items()} == {"a": 3, "b": 3}


def test_spread_names_median_and_ends():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "values": [3.0, 1.0, 2.0]}


def test_a_claim_holds_within_its_limit():
    assert Claim("time", 0.5, 0.6).holds
    assert not Claim("time", 0.7, 0.6).holds
    assert Claim("speed", 1.0, 0.97, "higher").holds
    assert not Claim("speed", 0.9, 0.97, "higher").holds
