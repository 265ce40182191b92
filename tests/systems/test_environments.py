"""Jobs in other Python environments: what they find there, how they end, and what is refused before work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from coldpress import api
from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job
from coldpress.jobs.store import Store
from coldpress.jobs.system import Executor
from coldpress.models.model import Model, content_key
from coldpress.systems.isolated_ort import IsolatedOrt
from coldpress.systems.processes.fork_server import close
from coldpress.systems.python_environment import PythonEnvironment
from coldpress.target import Target
from coldpress.workflow import Measure, Place, Step, Verify, Workflow
from coldpress.workflow.file import load_workflow
from tests.onnx_models import dense, saved
from tests.waiting import runs, until

OWN = str(Path(sys.executable).parent)


@pytest.fixture
def told(tmp_path, lab_parts):
    """``told(does, **parameters)``: what the metric of the lab tells of the environment that it runs in."""
    (tmp_path / "model").mkdir()
    model = Model(tmp_path / "model", "onnx", "key")

    def run(does: str = "tell", **parameters: object) -> dict[str, object]:
        system = PythonEnvironment(OWN, **parameters)
        job = Job("metric", "worker", {"does": does}, model)
        return dict(Executor(system, Store(tmp_path / "cache", since=1e12)).result(job).numbers)

    yield run
    close()


def test_a_job_finds_its_variables_its_path_and_the_token_only_where_it_is_asked_for(told, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "tools").mkdir()
    found = told(variables={"COLDPRESS_LAB_WISH": "quiet"}, prepend_to_path=(str(tmp_path / "tools"),))
    assert found["wish"] == "quiet" and found["folder"] == str(Path.cwd())
    assert found["path"].split(os.pathsep)[0] == str(tmp_path / "tools") and found["token"] == ""
    assert told(hf_token=True)["token"] == "hf_secret"


def test_a_job_that_takes_too_long_is_ended_with_all_that_it_started(told, tmp_path):
    with pytest.raises(ColdpressError, match="measuring 'worker' was ended: it took longer than 4 seconds"):
        told("hang", timeout_s=4.0, variables={"COLDPRESS_LAB_WISH": str(tmp_path / "pids")})
    pids = [int(one) for one in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    until(lambda: not any(psutil.pid_exists(pid) and runs(psutil.Process(pid)) for pid in pids), "the end of the tree")


def test_one_of_another_python_that_cannot_do_jobs_is_refused_before_work(tmp_path):
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 3 8 || { echo SyntaxError >&2; exit 1; }\n')
    python.chmod(0o755)
    source = saved(dense(), tmp_path / "source")
    place = Place("python_environment", {"path": str(tmp_path)})
    with pytest.raises(ColdpressError, match=r"another Python environment has Python 3\.8; coldpress needs 3\.10"):
        api.run(Workflow(str(source), (Step("onnx_opset_conversion", {"target_opset": 21}),), system=place))


def test_what_is_not_there_is_said_before_work(tmp_path):
    with pytest.raises(ColdpressError, match="there is no python in") as caught:
        PythonEnvironment(str(tmp_path)).check()
    assert "environment" in caught.value.hint
    with pytest.raises(ColdpressError, match="neither a path nor a requirements_file"):
        IsolatedOrt().check()
    with pytest.raises(ColdpressError, match="not both"):
        PythonEnvironment(str(tmp_path), requirements_file="r.txt")
    with pytest.raises(ColdpressError, match=r"requirements_file: there is no file .*r\.txt"):
        PythonEnvironment(requirements_file=str(tmp_path / "r.txt")).check()


def test_a_metric_may_be_measured_elsewhere_than_the_rest(tmp_path):
    system = {"type": "IsolatedOrt", "parameters": {"pathh": "p"}}
    with pytest.raises(ColdpressError, match=r"metrics\[1\]\.system\.parameters\.pathh") as caught:
        load_workflow({"model": "m", "metrics": ["size", {"type": "latency", "system": system}]})
    assert "path" in caught.value.hint


@pytest.fixture(scope="session")
def openvino(tmp_path_factory) -> str:
    """A file of requirements of another flavour of ONNX Runtime."""
    asked = [sys.executable, "-m", "pip", "index", "versions", "onnxruntime-openvino"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("no index of packages is reached")
    file = tmp_path_factory.mktemp("openvino") / "requirements.txt"
    file.write_text("onnxruntime-openvino\nopenvino\n")
    return str(file)


@pytest.mark.full
def test_one_workflow_measures_one_model_under_two_flavours_of_onnx_runtime(openvino, tmp_path):
    source = saved(dense(), tmp_path / "source")
    there = Place("isolated_ort", {"requirements_file": openvino})
    few = {"warmup": 1, "repeats": 3}
    metrics = (Measure("latency", few), Measure("latency", few, system=there))
    steps = (Step("onnx_opset_conversion", {"target_opset": 21}),)
    workflow = Workflow(str(source), steps, metrics=metrics, verify=Verify(), target=Target(threads=1))
    report = api.run(workflow, cache_dir=tmp_path / "cache")
    assert report.data["verdict"] == "verified"
    assert {"latency", "latency-2"} <= report.data.keys()
    system, model = there.make(), Model(source, "onnx", content_key(source))
    assert system.machine["onnxruntime"] != Workflow("").system.make().machine["onnxruntime"]
    target = Target("cpu", "OpenVINOExecutionProvider", 1)
    job = Job("metric", "latency", few, model, target)
    assert Executor(system, Store(tmp_path / "cache")).result(job).numbers["latency_p50_ms"] > 0
    with pytest.raises(ColdpressError, match="OpenVINOExecutionProvider is not on this machine"):
        Executor(Place().make(), Store(tmp_path / "cache")).result(job)
