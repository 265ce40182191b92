"""Packages of a result: what is in them, that it runs, and that nothing gets out of the output folder."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile

import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.packaging import check_package
from coldpress.workflow import Package


@pytest.fixture(scope="module")
def output(tiny_model, tmp_path_factory):
    """A pressed chat model with both packages."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "extra.txt").write_text("requests==2.0\n")
    workflow = {
        "model": str(tiny_model),
        "output": str(folder / "out"),
        "passes": ["press"],
        "verify": {"enabled": False},
        "packaging": [
            {"type": "zipfile", "name": "take-away", "requirements_file": str(folder / "extra.txt")},
            {"type": "dockerfile", "name": "Server"},
        ],
        "run": {"cache_dir": str(folder / "cache"), "log_to_file": True},
    }
    coldpress.run(workflow)
    return folder / "out"


def test_the_archive_holds_the_model_its_report_and_code_that_runs_it(output, tmp_path):
    with zipfile.ZipFile(output / "take-away.zip") as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    assert all(name.startswith("take-away/") for name in names)
    inside = {name.removeprefix("take-away/") for name in names}
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "workflow.yaml"} <= inside
    assert {"report.json", "report.html", "sample.py", "requirements.txt"} <= inside
    folder = tmp_path / "take-away"
    assert (folder / "model.onnx.data").read_bytes() == (output / "model.onnx.data").read_bytes()
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert requirements[0].startswith("onnxruntime-genai==") and requirements[-1] == "requests==2.0"

    code = (folder / "sample.py").read_text().replace("max_length=256", "max_length=140")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_result_makes_the_same_archive(output, tmp_path):
    from coldpress.packaging import write_package

    files = [file for file in output.iterdir() if file.suffix != ".zip"]
    archives = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        write_package(Package("zipfile"), tmp_path / name, {"format": "onnx"})
        archives.append((tmp_path / name / "model.zip").read_bytes())
    assert archives[0] == archives[1]


def test_the_dockerfile_copies_what_is_there(output):
    lines = (output / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in json.loads(line.removeprefix("COPY "))[:-1]]
    assert {"model.onnx", "model.onnx.data", "serve.py", "prompts.py", "requirements.txt"} <= set(copied)
    assert all((output / name).exists() for name in copied)
    assert "take-away.zip" not in copied and "report.json" not in copied
    assert lines[1] == "FROM python:3.12-slim"
    assert "docker build -t server" in lines[0]


def test_what_the_image_starts_answers(output, tmp_path):
    for name in ("serve.py", "prompts.py"):
        (tmp_path / name).write_bytes((output / name).read_bytes())
    (tmp_path / "model").symlink_to(output)
    server = subprocess.Popen(
        [sys.executable, "serve.py"], cwd=tmp_path, env={"PORT": "0", "PATH": ""}, stdout=subprocess.PIPE, text=True
    )
    try:
        port = server.stdout.readline().split()[-1]
        url = f"http://127.0.0.1:{port}/"
        assert "prompt" in json.loads(urllib.request.urlopen(url).read())["takes"]
        request = json.dumps({"prompt": "hello", "max_new_tokens": 3}).encode()
        assert json.loads(urllib.request.urlopen(url, data=request).read())["text"]
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url, data=b"{}")
        assert caught.value.code == 400 and "prompt" in json.loads(caught.value.read())["error"]
    finally:
        server.kill()


def test_the_report_counts_packages_and_the_log_lies_beside_the_output(output):
    report = json.loads((output / "report.json").read_text())
    assert {"take-away.zip", "Dockerfile", "serve.py"} <= set(report["files"])
    assert " INFO press: " in output.with_name("out.log").read_text()


def test_without_artifacts_only_the_model_is_written(tiny_model, tmp_path):
    workflow = {"model": str(tiny_model), "output": str(tmp_path / "out"), "passes": ["press"], "artifacts": False}
    coldpress.run({**workflow, "verify": {"enabled": False}}, cache_dir=tmp_path / "cache")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "model.onnx" in names and not names & {"report.json", "report.html", "README.md", "workflow.yaml"}


@pytest.mark.parametrize(
    "package",
    [
        Package("zipfile", "../out"),
        Package("zipfile", "/tmp/out"),
        Package("zipfile", ".."),
        Package("dockerfile", "a\nRUN x"),
        Package("dockerfile", base_image="python\nRUN x"),
        Package("dockerfile", requirements_file="missing.txt"),
    ],
    ids=str,
)
def test_names_that_lead_out_are_refused(package):
    with pytest.raises(ColdpressError):
        check_package(package)


def test_a_wrong_package_is_refused_before_any_work(tiny_model, tmp_path):
    workflow = {"model": str(tiny_model), "passes": ["press"], "packaging": [{"type": "zipfile", "name": "../x"}]}
    with pytest.raises(ColdpressError, match=r"\.\./x"):
        coldpress.run(workflow, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache/results").exists()


def test_clean_cache_does_everything_anew(tiny_model, tmp_path):
    workflow = {"model": str(tiny_model), "output": str(tmp_path / "out"), "passes": ["press"], "metrics": ["size"]}
    workflow |= {"verify": {"enabled": False}}

    def seconds():
        return coldpress.run(workflow, cache_dir=tmp_path / "cache").data["passes"][0]

    assert not seconds()["cached"]
    assert seconds() == json.loads((tmp_path / "out/report.json").read_text())["passes"][0]
    workflow["run"] = {"clean_cache": True}
    assert not seconds()["cached"]
    del workflow["run"]
    assert coldpress.run({**workflow, "output": None}, cache_dir=tmp_path / "cache").data["passes"][0]["cached"]


def test_the_report_tells_how_every_model_came_about(output):
    report = json.loads((output / "report.json").read_text())
    [press] = report["passes"]
    assert press["parent"] == report["source"]["key"] and press["model"] != press["parent"]
    assert press["format"] == "onnx" and press["ended"].startswith("20") and press["parameters"]["block_size"] == 32
    assert report["directions"]["size"]["model_bytes"] == {"better": "lower", "unit": "bytes"}
