"""How Docker is asked to run jobs, against a stand-in that runs them, and for real where a daemon is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job
from coldpress.jobs.store import Store
from coldpress.jobs.system import Executor
from coldpress.models.model import Model, content_key
from coldpress.systems.docker import Docker
from coldpress.target import Target
from tests.onnx_models import dense, saved

HAS_DAEMON = not subprocess.run(["sh", "-c", "docker version"], capture_output=True, check=False).returncode


@pytest.fixture
def account(tmp_path, monkeypatch):
    """``account()``: how the stand-in was called."""
    file = tmp_path / "account"
    monkeypatch.setenv("DOCKER_ACCOUNT", str(file))
    place = str(Path(__file__).with_name("bin"))
    monkeypatch.setenv("PATH", os.pathsep.join([place, str(Path(sys.executable).parent), os.environ["PATH"]]))
    return lambda: [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def job(tmp_path):
    source = saved(dense(), tmp_path / "source")
    model = Model(source, "onnx", content_key(source))
    return Job("metric", "latency", {"warmup": 1, "repeats": 2}, model, Target(threads=1))


def test_a_job_is_done_in_a_container_that_sees_its_files_and_no_secret_is_on_the_command_line(
    account, job, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PASSWORD", "secret")
    (tmp_path / "Dockerfile").write_text("FROM python\n")
    (tmp_path / "r.txt").write_text("numpy\n")
    system = Docker(
        "own:1",
        dockerfile="Dockerfile",
        build_context=str(tmp_path),
        build_arguments={"PIP": "x"},
        run_arguments={"gpus": "all", "read_only": True},
        volumes={str(tmp_path): "/data:ro"},
        variables={"PASSWORD": ""},
        work_dir=str(tmp_path),
        requirements_file=str(tmp_path / "r.txt"),
        hf_token=True,
    )
    system.check()
    store = Store(tmp_path / "cache")
    assert Executor(system, store).result(job).numbers["latency_p50_ms"] > 0
    version, build, packages, described, run = account()
    assert version[0] == "version"
    assert build == ["build", "--tag=own:1", f"--file={tmp_path}/Dockerfile", "--build-arg=PIP=x", str(tmp_path)]
    assert packages[0] == "build" and described[0] == "run"
    assert {"--gpus=all", "--read-only", "--env=PASSWORD", "--env=HF_TOKEN", f"--volume={tmp_path}:/data:ro"} <= set(
        run
    )
    source = job.model.path
    assert {f"--volume={store.root}:{store.root}", f"--volume={source}:{source}:ro"} <= set(run)
    assert packages[1].removeprefix("--tag=") in run and "secret" not in str(account())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"variables": {"HF_TOKEN": "hf_secret"}}, "variables: HF_TOKEN is a secret"),
        ({"build_arguments": {"API_KEY": "x"}}, "build_arguments: API_KEY is a secret"),
        ({"run_arguments": {"volume": ["/a:/a"]}}, "run_arguments: volume would replace what jobs need"),
        ({"run_arguments": {"env": ["A=1"]}}, "run_arguments: env would replace what jobs need"),
    ],
)
def test_no_secret_is_kept_and_nothing_that_jobs_need_replaced(account, parameters, message):
    with pytest.raises(ColdpressError, match=message):
        Docker("own:4", **parameters).check()


def test_what_docker_says_is_passed_on(account, job, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_FAILS", "1")
    (tmp_path / "Dockerfile").write_text("FROM nothing\n")
    with pytest.raises(ColdpressError, match=r"(?s)Dockerfile cannot be built:.*no such base image"):
        Docker("own:2", dockerfile=str(tmp_path / "Dockerfile"), work_dir=str(tmp_path)).placed(job)
    with pytest.raises(ColdpressError, match="dockerfile: there is no file"):
        Docker("own:3", dockerfile=str(tmp_path / "Dockerfil")).check()


@pytest.mark.skipif(HAS_DAEMON, reason="a daemon is there")
def test_without_a_daemon_it_is_said_before_work(tmp_path, monkeypatch):
    with pytest.raises(ColdpressError, match=r"no Docker answers|no docker on the path") as caught:
        Docker().check()
    assert caught.value.hint


@pytest.mark.full
@pytest.mark.skipif(not HAS_DAEMON, reason="needs Docker's daemon")
def test_a_job_is_done_in_a_real_container(job, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python:3.12-slim\nRUN pip install onnxruntime onnx onnx-ir\n")
    (tmp_path / "r.txt").write_text("blake3\nfilelock\nmsgspec\nplatformdirs\npsutil\n")
    file = str(tmp_path / "Dockerfile")
    system = Docker("coldpress-test", dockerfile=file, requirements_file=str(tmp_path / "r.txt"))
    system.check()
    assert Executor(system, Store(tmp_path / "cache")).result(job).numbers["latency_p50_ms"] > 0
