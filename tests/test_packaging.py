"""Packages of a result: what is in them, that it runs, and that nothing gets out of the output folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.models.model import Model
from coldpress.packaging import check_package
from coldpress.packaging.archive import write_archive
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.serving.chat import Conversation
from coldpress.serving.engine import Engine, Sampling
from coldpress.workflow import Package

#: how a character is written whose last bytes were not made any more
CUT = "\ufffd"


@pytest.fixture(scope="module")
def output(tiny_model, tmp_path_factory):
    """A pressed chat model with every package."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "extra.txt").write_text("requests==2.0\n")
    for_gpu = folder / "for-gpu"
    for_gpu.mkdir()
    Press(precision="fp32").run(Model(tiny_model, "hf", "tiny"), Context(for_gpu))
    target = {"device": "gpu", "provider": "CUDAExecutionProvider"}
    (for_gpu / "report.json").write_text(json.dumps({"target": target}))
    workflow = {
        "model": str(tiny_model),
        "output": str(folder / "out"),
        "passes": ["press"],
        "verify": {"enabled": False},
        "packaging": [
            {"type": "zipfile", "name": "take-away", "requirements_file": str(folder / "extra.txt")},
            {"type": "dockerfile", "name": "Server"},
            {"type": "mlflow", "name": "flow"},
            {"type": "model_package", "name": "both", "variants": {"gpu": str(for_gpu)}},
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

    assert {f"samples/chat.{language}" for language in ("cs", "cpp", "mjs", "csproj")} <= inside
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 2

    code = (folder / "sample.py").read_text().replace("max_length=256", "max_length=140")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_result_makes_the_same_archive(output, tmp_path):
    from coldpress.packaging import write_package

    files = [file for file in output.iterdir() if file.is_file() and file.suffix != ".zip"]
    archives = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        write_package(Package("zipfile"), tmp_path / name, {"format": "onnx"})
        archives.append((tmp_path / name / "model.zip").read_bytes())
    assert archives[0] == archives[1]


def test_foundry_local_finds_the_model_by_its_name(output, tmp_path):
    unpacked(output / "take-away.zip", tmp_path)
    found = json.loads((tmp_path / "take-away/inference_model.json").read_text())
    prompt = "<|user|>{Content}<|end|><|assistant|>"
    assert found == {"Name": "take-away", "PromptTemplate": {"assistant": "{Content}", "prompt": prompt}}


def unpacked(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)


@pytest.fixture(scope="module")
def greedy(output):
    """What a chat answers to "hello" with 12 tokens."""
    return "".join(Conversation(Engine(output, 1), sampling=Sampling(12)).ask("hello"))


def test_the_dockerfile_copies_what_is_there(output):
    lines = (output / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in json.loads(line.removeprefix("COPY "))[:-1]]
    assert {"model.onnx", "model.onnx.data", "server/", "requirements.txt"} <= set(copied)
    assert all((output / name).exists() for name in copied)
    assert not {"take-away.zip", "report.json", "server", "Dockerfile"} & set(copied)
    assert lines[1] == "FROM python:3.12-slim"
    assert "docker build -t server" in lines[0]


def test_what_the_image_starts_answers_as_a_chat_does(output, tmp_path, greedy):
    """The steps of the Dockerfile, without a container."""
    shutil.copytree(output / "server", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model").symlink_to(output)
    lines = (output / "Dockerfile").read_text().splitlines()
    start = json.loads(next(line for line in lines if line.startswith("CMD")).removeprefix("CMD "))
    server = subprocess.Popen(
        [sys.executable, *start[1:]], cwd=tmp_path, env={"PORT": "0", "PATH": "", "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        url = server.stdout.readline().split()[-1]
        chat = {
            "model": "Server",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 12,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(chat).encode(), {"Content-Type": "application/json"}
        )
        answer = json.loads(urllib.request.urlopen(request).read())
        assert answer["choices"][0]["message"]["content"] == greedy
    finally:
        server.kill()


def test_mlflow_calls_a_loader_that_answers_a_table(output, tmp_path, greedy):
    import yaml

    unpacked(output / "flow.zip", tmp_path)
    folder = tmp_path / "flow"
    flavour = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    code = f"""
import sys, json, pandas
sys.path.insert(0, {flavour["code"]!r})
model = __import__({flavour["loader_module"]!r})._load_pyfunc({flavour["data"]!r})
table = pandas.DataFrame({{"prompt": ["hello", "why"], "max_new_tokens": [12, 3], "adapter": [None, None]}})
print(json.dumps(model.predict(table)["text"].tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first.rstrip(CUT) == greedy and second != first


@pytest.mark.full
def test_mlflow_itself_loads_the_model(output, tmp_path, greedy):
    mlflow = pytest.importorskip("mlflow")
    pandas = pytest.importorskip("pandas")
    unpacked(output / "flow.zip", tmp_path)
    model = mlflow.pyfunc.load_model(str(tmp_path / "flow"))
    found = model.predict(pandas.DataFrame({"prompt": ["hello"], "max_new_tokens": [12]}))
    assert [text.rstrip(CUT) for text in found["text"]] == [greedy]


def test_a_package_of_variants_takes_the_one_for_this_device(output, tmp_path):
    unpacked(output / "both.zip", tmp_path)
    folder = tmp_path / "both.ortpackage"
    manifest = json.loads((folder / "manifest.json").read_text())
    variants = manifest["components"]["model"]["variants"]
    assert {name: one["ep"] for name, one in variants.items()} == {
        "cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"
    }  # fmt: skip
    assert all((folder / name / "genai_config.json").is_file() for name in variants)
    assert not any(folder.rglob("report.json")) and not any(folder.rglob("Dockerfile"))
    code = (folder / "sample.py").read_text().replace("max_length=512", "max_length=140")
    (folder / "sample.py").write_text(code)
    done = subprocess.run([sys.executable, "sample.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr.startswith("[cpu]"), done.stderr


@pytest.mark.full
def test_node_answers_as_a_chat_does(output, tmp_path, greedy):
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no Node is installed")
    unpacked(output / "take-away.zip", tmp_path)
    sample = tmp_path / "take-away/samples/chat.mjs"
    code = sample.read_text().replace("max_new_tokens: 256", "max_new_tokens: 12")
    code = code.replace("await model.generate(", "const made = await model.generate(")
    sample.write_text(f"{code}\nconsole.log(JSON.stringify(Array.from(made.data, Number)));\n")
    subprocess.run([npm, "install", "--ignore-scripts", "@huggingface/transformers@4"], cwd=sample.parent, check=True)
    done = subprocess.run(
        ["node", sample, "hello"], cwd=sample.parent, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    chat = Conversation(Engine(output, 1), sampling=Sampling(12))
    assert "".join(chat.ask("hello")) == greedy
    assert json.loads(done.stdout.splitlines()[-1])[-12:] == chat.last.stream.tokens


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "C:/x", "a\\..\\x", "", "a\0b"])
def test_an_archive_never_writes_outside_its_folder(name, tmp_path):
    with pytest.raises(ColdpressError, match="leads out of the archive"):
        write_archive(tmp_path / "x.zip", {name: "text"})
    assert not (tmp_path / "x.zip").exists()


def test_the_report_counts_packages_and_the_log_lies_beside_the_output(output):
    report = json.loads((output / "report.json").read_text())
    assert {"take-away.zip", "flow.zip", "both.zip", "Dockerfile"} <= set(report["files"])
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
        Package("zipfile", variants={"gpu": "."}),
        Package("model_package", variants={"../gpu": "."}),
        Package("model_package", variants={"gpu": "nowhere"}),
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
