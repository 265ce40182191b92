"""A real cluster of two nodes on this machine: the same results as one process, whatever becomes of a node."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import coldpress
from coldpress.errors import ColdpressError
from coldpress.jobs import node
from coldpress.jobs.job import Job, Result
from coldpress.jobs.store import Store
from coldpress.jobs.system import Executor
from coldpress.models.model import Model
from coldpress.systems.ray import Ray
from coldpress.workflow.file import load_workflow
from tests.onnx_models import dense, saved
from tests.waiting import free_port, until

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("lab_parts")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, lab_parts):
    """A head that does no jobs, and two nodes that do one at a time and share no cache."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), root])
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **ports()}
    )
    for number in range(2):
        add(made, tmp_path_factory.mktemp(f"node-{number}"))
    made.wait_for_nodes(300)
    yield made
    ray.shutdown()
    made.shutdown()


def add(cluster, cache):
    """One more node, which is known by its cache."""
    variables = {"COLDPRESS_CACHE": str(cache), "LAB_LOG": os.environ.get("LAB_LOG", "")}
    _nodes[str(cache)] = cluster.add_node(num_cpus=1, env_vars=variables, **ports())


def ports():
    """Ports of a node's agents; without them a node waits for these to begin, and gives up where that takes long."""
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    return {name: free_port() for name in names}


_nodes: dict[str, object] = {}


def system(cluster, **parameters):
    return {"type": "ray", "parameters": {"address": cluster.address, **parameters}}


def searched(folder: Path, place: object, cache: Path):
    workflow = load_workflow(
        {
            "model": str(folder / "source"),
            "passes": [
                {"type": "onnx_opset_conversion", "parameters": {"target_opset": {"choice": [19, 20, 21]}}},
                {"type": "spoil", "parameters": {"share": {"choice": [0.01, 0.02]}}},
            ],
            "metrics": [{"type": "size", "goals": {"model_bytes": {"priority": 1}}}],
            "search": {"sampler": "grid"},
            "target": {"threads": 1},
            "output": str(folder / f"out-{cache.name}"),
            "verify": {"enabled": False},
            "system": place,
        }
    )
    return coldpress.run(workflow, cache_dir=cache)


def test_a_search_over_two_nodes_gives_the_bytes_of_one_process(cluster, tmp_path):
    saved(dense(), tmp_path / "source")
    alone = searched(tmp_path, "local", tmp_path / "alone")
    spread = searched(tmp_path, system(cluster), tmp_path / "spread")
    numbers = lambda report: [point["numbers"] for point in report.data["search"]["points"]]  # noqa: E731
    assert numbers(spread) == numbers(alone)
    names = sorted(file.name for file in alone.model.path.rglob("*.onnx*"))
    assert names and all((alone.model.path / n).read_bytes() == (spread.model.path / n).read_bytes() for n in names)


def test_times_are_taken_by_one_kind_of_machine_alone_on_a_node(cluster, tmp_path):
    (tmp_path / "model").mkdir()
    place = Ray(cluster.address)
    job = place.placed(Job("metric", "timer", {}, Model(tmp_path / "model", "onnx", "key")))
    assert job.machine == node.this_machine()
    with place._node_for(job) as options:
        assert options["num_cpus"] == 1.0 and "SPREAD" not in str(options["scheduling_strategy"])


def test_a_node_with_another_coldpress_is_refused_before_work(cluster, monkeypatch):
    system = Ray(cluster.address)
    system.check()
    monkeypatch.setattr(node, "sources", lambda: "another")
    with pytest.raises(ColdpressError, match=r"has another coldpress.* instead of another") as caught:
        system.check()
    assert "every node" in caught.value.hint


def test_a_failure_on_a_node_has_its_own_words(cluster, tmp_path):
    (tmp_path / "model").mkdir()
    model = Model(tmp_path / "model", "onnx", "key")
    with pytest.raises(ColdpressError, match="not this model") as caught:
        Executor(Ray(cluster.address), Store(tmp_path / "cache")).result(
            Job("metric", "worker", {"does": "refuse"}, model)
        )
    assert caught.value.hint == "another one"


def test_a_node_that_is_killed_costs_only_the_job_that_it_was_at(cluster, tmp_path):
    """The job begins on one node, which is killed; it is done on another. What was done before is not done again."""
    (tmp_path / "model").mkdir()
    model, store = Model(tmp_path / "model", "onnx", "key"), Store(tmp_path / "cache")
    executor = Executor(Ray(cluster.address), store)
    first = executor.result(Job("metric", "worker", {"number": 1}, model))
    account, done = tmp_path / "account", list[Result]()
    job = Job("metric", "worker", {"does": "wait", "place": str(account)}, model)
    thread = threading.Thread(target=lambda: done.append(executor.result(job)))
    thread.start()
    began = lambda: account.read_text().split() if account.exists() else []  # noqa: E731
    until(lambda: len(began()) == 1, "the job to begin", 300)
    cluster.remove_node(_nodes[began()[0]], allow_graceful=False)
    until(lambda: len(began()) == 2, "the job to begin anew", 300)
    (tmp_path / "account.go").touch()
    thread.join(300)
    assert done[0].numbers["pid"] and began()[0] != began()[1]
    assert executor.result(Job("metric", "worker", {"number": 1}, model)).numbers == first.numbers
