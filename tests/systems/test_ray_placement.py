"""Which nodes of a cluster do a job: those that lend what it takes, and, for times, those of one kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job
from coldpress.jobs.node import this_node
from coldpress.models.model import Model
from coldpress.systems import ray
from coldpress.systems.ray import Ray
from coldpress.target import Target

pytestmark = pytest.mark.usefixtures("lab_parts")


@pytest.fixture
def cluster(monkeypatch):
    """``cluster(a=(processor, what it lends), ...)`` makes these the nodes, which have long names."""
    monkeypatch.setattr(ray, "_kinds", {})
    own = this_node()

    def made(**nodes):
        told = {
            name * 56: ray._Member(replace(own, machine={"processor": processor}), lends)
            for name, (processor, lends) in nodes.items()
        }
        monkeypatch.setattr(Ray, "_members", lambda self: told)

    return made


@pytest.fixture
def job(tmp_path):
    return Job("metric", "timer", {}, Model(tmp_path, "onnx", "key"))


def options(system, job):
    with system._node_for(system.placed(job)) as found:
        strategy = found["scheduling_strategy"]
        return strategy if isinstance(strategy, str) else str(strategy.node_id)[0], found


def test_times_are_taken_by_the_commonest_kind_that_has_what_a_job_takes_alone_on_a_node(cluster, job):
    pytest.importorskip("ray")
    cluster(a=("slow", {"CPU": 4}), b=("fast", {"CPU": 8}), c=("fast", {"CPU": 16}), d=("huge", {"CPU": 64, "GPU": 2}))
    system = Ray(num_cpus=2)
    assert system.machine == {"processor": "fast"}
    assert system.workers == 2 + 4 + 8 + 32
    node, found = options(system, job)
    assert (node, found["num_cpus"]) in (("b", 8), ("c", 16)) and "num_gpus" not in found
    untimed = replace(job, part="worker")
    assert options(system, untimed)[0] == "SPREAD" and options(system, untimed)[1]["num_cpus"] == 2
    node, found = options(system, replace(job, target=Target("gpu", "CUDAExecutionProvider")))
    assert node == "d" and found["num_gpus"] == 1 and found["num_cpus"] == 64


def test_the_kind_stays_whatever_nodes_come_and_go(cluster, job):
    cluster(a=("slow", {"CPU": 1}), b=("slow", {"CPU": 1}), c=("fast", {"CPU": 1}))
    placed = Ray().placed(job)
    cluster(c=("fast", {"CPU": 1}), d=("fast", {"CPU": 1}))
    with pytest.raises(ColdpressError, match="no node of the kind that 'timer' is done on is left"):
        Ray().placed(job)
    with pytest.raises(ColdpressError, match="no node of the kind"), Ray()._node_for(placed):
        pass


@pytest.mark.parametrize("asked", [{"num_cpus": 32}, {"resources": {"npu": 1}}])
def test_what_no_node_lends_is_said_instead_of_waited_for(asked, cluster):
    cluster(a=("slow", {"CPU": 4}))
    with pytest.raises(ColdpressError, match=f"no node lends .*{next(iter(asked.get('resources', {'CPU': 0})))}"):
        Ray(**asked).check()
