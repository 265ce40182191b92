"""A Ray cluster on this machine, of nodes that have one processor each: what a job costs beside its work, and how much
faster two nodes search than one.

The search is that of `benchmarks.search`, with 24 points of MiniLM; every node has a processor and a cache of its own.
It needs a quiet machine with at least three processors: one is for the program that asks.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Claim, Options, Outcome, spread
from benchmarks.search import _INT8, _SESSION, minilm_graph

_JOBS = 50
_THREADS = 1


def run(options: Options) -> Outcome:
    """The claims about clusters."""
    measured: dict[str, Any] = {}
    with cluster(1, options) as address:
        measured["job_ms"] = job_overhead(address, options)
    source = minilm_graph(options)
    for nodes in (1, 2):
        with cluster(nodes, options) as address:
            measured[f"nodes-{nodes}"] = searched(source, address, options)
    one, two = measured["nodes-1"], measured["nodes-2"]
    same = one["chosen"] == two["chosen"]
    claims = [
        Claim("milliseconds that a job costs on a node beside its work", measured["job_ms"]["median"], 100),
        Claim("seconds of a 24-point search on two nodes, in those on one", two["seconds"] / one["seconds"], 1 / 1.7),
    ]
    return Outcome(measured, claims, [f"the same point is chosen: {'yes' if same else 'no'}"])


@contextmanager
def cluster(nodes: int, options: Options) -> Iterator[str]:
    """The address of a cluster that lends one processor of this machine for each node."""
    import ray
    from ray.cluster_utils import Cluster

    own = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(dir=options.scratch) as caches:
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for number, core in zip(range(nodes), sorted(own, reverse=True), strict=False):
                os.sched_setaffinity(0, {core})  # a node begins with it, and so do all processes of it
                made.add_node(num_cpus=1, env_vars={"COLDPRESS_CACHE": f"{caches}/{number}"})
            os.sched_setaffinity(0, own)
            made.wait_for_nodes()
            ray.init(made.address, logging_level=logging.ERROR, log_to_driver=False)
            yield made.address
        finally:
            os.sched_setaffinity(0, own)
            ray.shutdown()
            made.shutdown()


def job_overhead(address: str, options: Options) -> dict[str, Any]:
    """Milliseconds a job for a metric that does next to nothing, once the node has its libraries."""
    from coldpress.jobs.job import Job
    from coldpress.jobs.store import Store
    from coldpress.jobs.system import Executor
    from coldpress.models.model import Model
    from coldpress.systems.ray import Ray

    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        source = Path(name) / "source"
        source.mkdir()
        _write_identity(source / "model.onnx")
        executor, taken = Executor(Ray(address), Store(Path(name) / "cache")), []
        for index in range(_JOBS + 1):
            job = Job("metric", "size", {}, Model(source, "onnx", f"key{index}"))
            started = time.perf_counter()
            executor.result(job)
            taken.append(1e3 * (time.perf_counter() - started))
        return spread(taken[1:])


def _write_identity(file: Path) -> None:
    """The smallest graph that there is to measure."""
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)


def searched(source: Path, address: str, options: Options) -> dict[str, Any]:
    """How long the search takes on a cluster, its results not known yet, and what is chosen by size, which has no
    noise."""
    import coldpress

    workflow = {
        "model": str(source),
        "passes": [{"any_of": _INT8}, _SESSION],
        "metrics": [{"type": "size", "goals": {"model_bytes": {"priority": 1}}}, {"type": "latency"}],
        "search": {"sampler": "grid"},
        "target": {"threads": _THREADS},
        "verify": {"enabled": False},
        "system": {"type": "ray", "parameters": {"address": address}},
    }
    with tempfile.TemporaryDirectory(dir=options.scratch) as cache:
        started = time.perf_counter()
        report = coldpress.run(workflow, cache_dir=cache)
        seconds = time.perf_counter() - started
    search = report.data["search"]
    points = [[one["parameters"], one["numbers"].get("size.model_bytes")] for one in search["points"]]
    return {
        "seconds": seconds,
        "chosen": search["points"][search["chosen"]]["parameters"],
        "points": json.loads(json.dumps(points)),
    }
