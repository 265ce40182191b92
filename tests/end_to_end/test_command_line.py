"""The command line as a user types it: real processes, real exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import weights
from tests.waiting import until

TREE = {
    "model.onnx",
    "model.onnx.data",
    "genai_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "report.json",
    "report.html",
    "workflow.yaml",
    "README.md",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    users = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}  # is coldpress' work
    return {**users, "COLDPRESS_CACHE": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def run(environment, tmp_path):
    def call(*arguments: object, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "coldpress", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**environment, **extra}, check=False
        )

    return call


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.endswith(" so far")]
    assert said[0].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_the_documents_command_writes_the_documents_tree(run, make_model, tmp_path):
    """And nothing else: no library leaves traces in the user's home, as ONNX Runtime does where nobody forbids it."""
    home = tmp_path / "home"
    home.mkdir()
    model = make_model(tensors=weights(2))  # the answers of others hang on the last digit
    done = run(
        *("auto-opt", "--model_name_or_path", model, "--output_path", "out", "--device", "cpu"),
        *("--provider", "CPUExecutionProvider", "--use_ort_genai", "--precision", "int4", "--log_level", "1"),
        *("--tolerance", "kl=5,ppl=10,top1=0,generation=0"),  # a random model has nothing to lose
        HOME=str(home),
    )
    assert done.returncode == 0, done.stderr
    assert [*home.rglob("*")] == []
    assert {file.name for file in (tmp_path / "out").iterdir()} == TREE
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["verdict"] == "verified"
    assert report["quality"]["kl"] > 0
    assert report["size"]["bits_per_weight"] > 4
    assert report["speed"]["decode_tokens_per_second"] > 0
    assert report["memory"]["peak_memory_mb"] > 0
    assert "Verified" in done.stdout

    again = run("run", "--config", "out/workflow.yaml", "--output_path", "out2", "--log_level", "1")
    assert again.returncode == 0, again.stderr
    assert "found in the cache" in again.stderr
    assert (tmp_path / "out/model.onnx.data").read_bytes() == (tmp_path / "out2/model.onnx.data").read_bytes()


def test_doing_it_twice_does_no_work_and_output_is_guarded(run, tiny_model, tmp_path):
    command = ("auto-opt", "-m", tiny_model, "-o", "out", "--no-verify", "--algorithm", "rtn")
    assert run(*command).returncode == 0
    before = (tmp_path / "out/report.json").stat().st_mtime_ns
    again = run(*command, "--log_level", "1")
    assert again.returncode == 0 and "up to date" in again.stderr
    assert (tmp_path / "out/report.json").stat().st_mtime_ns == before

    refused(run(*command, "--block_size", "64"), 2, "not empty", "--overwrite")
    (tmp_path / "out/notes.txt").write_text("mine")
    changed = run(*command, "--block_size", "64", "--overwrite")
    assert changed.returncode == 0, changed.stderr
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "out/report.json").read_text())["layers"][0]["block_size"] == 64


def test_an_unverified_model_is_called_so_and_other_weights_are_named(run, make_model, tmp_path):
    model = make_model()
    (model / "pytorch_model.bin").write_bytes(b"weights of another save")
    done = run("auto-opt", "-m", model, "-o", "out", "--no_verify", "--json")
    assert done.returncode == 0
    report, page = json.loads(done.stdout), (tmp_path / "out/report.html").read_text()
    assert report["verdict"] == "unverified" and "Not verified" in page
    remark = report["source"]["notes"][0]
    assert "pytorch_model.bin beside model.safetensors" in remark
    assert remark in page and f"note: {remark}\n" in done.stderr


def test_worse_than_the_tolerance_is_exit_3_and_names_a_layer(run, tiny_model, tmp_path):
    done = run("auto-opt", "-m", tiny_model, "-o", "out", "--tolerance", "kl=0.000001")
    assert done.returncode == 3, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["verdict"] == "worse than tolerance"
    assert "KL divergence" in report["reasons"][0]
    assert "worst layer is model.layers." in report["reasons"][-1] or "lm_head" in report["reasons"][-1]


def test_chat_answers(run, tiny_model):
    assert run("auto-opt", "-m", tiny_model, "-o", "out", "--no_verify").returncode == 0
    done = run("chat", "out", "--prompt", "hello", "--max_new_tokens", "5")
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stderr
    refused(run("chat", "nothing", "--prompt", "hello"), 2, "nothing", "auto-opt")


def test_plan_does_nothing_and_predicts_the_size(run, tiny_model, tmp_path):
    planned = json.loads(run("plan", "-m", tiny_model, "--json").stdout)
    assert planned["weights"] > 0 and not (tmp_path / "models").exists()
    dry = run("auto-opt", "-m", tiny_model, "-o", "out", "--dry_run")
    assert dry.returncode == 0 and "peak memory" in dry.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("auto-opt", "-m", "{model}", "--precison", "int4"), ("--precison", "did you mean '--precision'")),
        (("auto-opt", "--modell", "{model}"), ("--modell", "did you mean '--model_name_or_path'")),
        (("auto-opt", "-m", "{model}", "--precision", "in8"), ("in8", "did you mean 'int8'")),
        (("auto-opt", "-m", "{model}", "--algorithm", "kquan"), ("did you mean 'kquant'",)),
        (
            ("auto-opt", "-m", "{model}", "--provider", "CUDExecutionProvider"),
            ("did you mean 'CUDAExecutionProvider'",),
        ),
        (("auto-opt", "-m", "{model}", "--device", "gpu", "--provider", "CPUExecutionProvider"), ("--device cpu",)),
        (("auto-opt", "-m", "{model}", "--precision", "fp16"), ("fp16 on CPUExecutionProvider", "int8")),
        (("auto-opt", "-m", "{model}", "--precision", "int8", "--accuracy_level", "0"), ("slower", "accuracy_level 4")),
        (("auto-opt", "-m", "{model}", "--tolerance", "kll=1"), ("unknown tolerance 'kll'", "did you mean 'kl'")),
        (("auto-opt", "-m", "{model}", "--precision", "fp32", "--algorithm", "rtn"), ("no effect", "--algorithm")),
        (("auto-opt", "-m", "./missing"), ("./missing does not exist",)),
        (("auto-opt", "-m", "somebody/some-model"), ("somebody/some-model",)),
        (("auto-opt", "-m", "{model}", "--eval_data", "missing.txt"), ("missing.txt",)),
        (("auto-opt",), ("no model was named", "-m MODEL")),
        (("auto-optt",), ("did you mean 'auto-opt'",)),
        (("run-pass", "pres", "-m", "{model}"), ("did you mean 'press'",)),
        (("show", "perplexty"), ("did you mean 'perplexity'",)),
        (("run", "--config", "nothing.yaml"), ("nothing.yaml",)),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else None,
)
def test_a_wrong_request_is_exit_2_with_a_hint(run, tiny_model, tmp_path, arguments, words):
    refused(run(*(argument.format(model=tiny_model) for argument in arguments)), 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("run-pass",), ("cache",)])
def test_a_command_that_needs_another_one_shows_its_help(run, words):
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ") and "Commands:" in done.stderr


def test_workflow_files_are_checked_whole(run, tiny_model, tmp_path):
    file = tmp_path / "w.yaml"
    for text, words in {
        "model: x\npases: []": ("w.yaml, line 2: pases: there is no 'pases' here", "did you mean 'passes'"),
        "model: x\npasses:\n- type: pres": ("w.yaml, line 3: passes[0].type", "did you mean 'press'"),
        "model: x\npasses:\n- type: press\n  parametrs: {}": ("passes[0].parametrs", "did you mean 'parameters'"),
        "model: x\npasses:\n- type: press\n  parameters: {bits: 4}": ("line 4: passes[0].parameters.bits",),
        "model: x\npasses:\n- type: press\n  parameters: {block_size: big}": ("passes[0].parameters.block_size",),
        "model: x\nverify: {tolerances: 1}": ("verify.tolerances", "tolerance"),
        "model: [": ("neither YAML nor JSON",),
    }.items():
        file.write_text(text)
        refused(run("run", "--config", file), 2, *words)


def test_a_dry_run_prints_the_resolved_workflow_and_does_no_work(run, tiny_model, tmp_path):
    (tmp_path / "w.yaml").write_text(f"model: {tiny_model}\noutput: out\npasses: [press]\ntarget: {{device: gpu}}\n")
    done = run("run", "--config", "w.yaml", "--dry_run")
    assert done.returncode == 0, done.stderr
    (tmp_path / "again.yaml").write_text(done.stdout)
    again = run("run", "--config", "again.yaml", "--dry_run")
    assert again.stdout == done.stdout
    assert "block_size: 32" in done.stdout and "CUDAExecutionProvider" in done.stdout
    assert not (tmp_path / "out").exists()

    refused(run("run", "--config", "w.yaml", "--dry_run", "-m", "./missing"), 2, "./missing does not exist")
    (tmp_path / "w.yaml").write_text(f"model: {tiny_model}\npasses: [press, press]\n")
    refused(run("run", "--config", "w.yaml", "--dry_run"), 2, "'press' takes hf or adapter, but gets onnx")


def test_flags_of_run_override_the_file(run, tiny_model, tmp_path):
    (tmp_path / "w.yaml").write_text(
        "model: nothing\noutput: wrong\npasses: [press]\nrun: {log_level: 4, cache_dir: c1}\n"
    )
    flags = ("-m", tiny_model, "-o", "out", "--threads", "1", "--no_verify", "--log_level", "1", "--cache_dir", "c2")
    done = run("run", "--config", "w.yaml", *flags, "--log_to_file", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == {"device": "cpu", "provider": "CPUExecutionProvider", "threads": 1}
    assert report["verdict"] == "unverified"
    assert "press: " in done.stderr and " INFO press: " in (tmp_path / "out.log").read_text()
    assert (tmp_path / "c2/results").exists() and not (tmp_path / "c1").exists() and not (tmp_path / "wrong").exists()

    again = run("run", "--config", "w.yaml", *flags, "--clean_cache")
    assert again.returncode == 0 and "cache" not in again.stderr, again.stderr


def test_a_system_that_is_not_ready_is_read_and_refused_before_any_work(run, tiny_model, tmp_path):
    (tmp_path / "w.yaml").write_text(f"model: {tiny_model}\npasses: [press]\nsystem: azure_ml\n")
    assert run("run", "--config", "w.yaml", "--dry_run").returncode == 0
    refused(run("run", "--config", "w.yaml"), 2, "Azure ML is a later capability", "--system local")
    assert run("run", "--config", "w.yaml", "--dry_run", "--system", "local").returncode == 0


OLIVES = {
    "input_model": {"type": "HfModel", "model_path": "MODEL", "task": "text-generation"},
    "passes": {"build": {"type": "ModelBuilder", "config": {"precision": "int8", "int4_accuracy_level": 4}}},
    "engine": {"output_dir": "out", "workflow_id": "mine", "log_severity_level": 1, "cache_dir": "cache"},
}


def test_a_configuration_of_olive_runs_and_migrates(run, tiny_model, tmp_path):
    text = json.dumps(OLIVES, indent=2).replace("MODEL", str(tiny_model))
    (tmp_path / "olive.json").write_text(text)
    done = run("run", "--config", "olive.json", "--no_verify")
    assert done.returncode == 0, done.stderr
    assert "note: engine.workflow_id: no effect here" in done.stderr and "press: " in done.stderr
    assert json.loads((tmp_path / "out/report.json").read_text())["layers"][0]["bits"] == 8
    assert (tmp_path / "cache/results").exists()

    moved = run("migrate", "olive.json", "-o", "new.yaml")
    assert moved.returncode == 0, moved.stderr
    assert "# - engine.workflow_id: no effect here" in (tmp_path / "new.yaml").read_text()
    again = run("run", "--config", "new.yaml", "--no_verify")
    assert again.returncode == 0 and "up to date" in again.stderr, again.stderr
    refused(run("migrate", "olive.json", "-o", "new.yaml"), 2, "new.yaml exists", "--overwrite")
    assert json.loads(run("migrate", "olive.json", "-o", "new.json").stdout or "{}") == {}
    assert json.loads((tmp_path / "new.json").read_text())["passes"][0]["type"] == "press"


def test_a_configuration_that_cannot_be_expressed_is_told_whole_and_not_written(run, tmp_path):
    passes = {"a": {"type": "SparseGPT"}, "b": {"type": "ModelBuildr"}}
    (tmp_path / "olive.json").write_text(json.dumps({**OLIVES, "passes": passes}, indent=2))
    done = run("migrate", "olive.json", "-o", "new.yaml")
    assert done.returncode == 2 and not (tmp_path / "new.yaml").exists()
    assert done.stderr.count("error: olive.json, line ") == 2 and "did you mean 'ModelBuilder'" in done.stderr
    refused(run("run", "--config", "olive.json"), 2, "passes.a: there is nothing like SparseGPT", "and 1 more")
    (tmp_path / "native.yaml").write_text("model: x\n")
    refused(run("migrate", "native.yaml"), 2, "no configuration of Olive")


class TestDamagedModels:
    """Each is refused before anything is written, naming the file and the tensor."""

    def test_no_config(self, run, make_model):
        folder = make_model()
        (folder / "config.json").unlink()
        refused(run("auto-opt", "-m", folder, "-o", "out"), 2, "config.json")

    def test_no_weights(self, run, make_model):
        folder = make_model()
        (folder / "model.safetensors").unlink()
        refused(run("auto-opt", "-m", folder, "-o", "out"), 2, "weights")

    def test_cut_off(self, run, make_model):
        file = make_model() / "model.safetensors"
        os.truncate(file, file.stat().st_size - 1000)
        refused(run("auto-opt", "-m", file.parent, "-o", "out"), 2, "model.safetensors", "cut off", "tensor 'model.")

    def test_no_safetensors_at_all(self, run, make_model):
        file = make_model() / "model.safetensors"
        file.write_bytes(b"<html>not found</html>" * 10)
        refused(run("auto-opt", "-m", file.parent, "-o", "out"), 2, "model.safetensors", "corrupt")

    def test_a_missing_shard(self, run, make_model):
        folder = make_model()
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(run("auto-opt", "-m", folder, "-o", "out"), 2, "model-00002-of-00002.safetensors")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_no_numbers(self, run, make_model, tmp_path, value):
        from tests.conftest import weights

        tensors = weights()
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        done = run("auto-opt", "-m", make_model(tensors=tensors), "-o", "out", "--no_verify")
        refused(done, 2, "model.layers.1.mlp.up_proj.weight", str(value))
        assert not (tmp_path / "out").exists()

    def test_an_unknown_architecture(self, run, make_model):
        folder = make_model(model_type="lama", architectures=["LamaForCausalLM"])
        refused(run("auto-opt", "-m", folder, "-o", "out"), 2, "unknown architecture 'lama'", "llama")

    def test_a_config_of_other_weights(self, run, make_model):
        folder = make_model(intermediate_size=256)
        refused(run("auto-opt", "-m", folder, "-o", "out"), 2, "config.json")

    def test_code_of_its_own(self, run, make_model):
        folder = make_model(auto_map={"AutoConfig": "code.Config"})
        refused(run("auto-opt", "-m", folder, "-o", "out"), 2, "--trust_remote_code")


def test_a_provider_that_is_not_here_is_built_but_not_verified(run, tiny_model, tmp_path):
    done = run(
        "auto-opt", "-m", tiny_model, "-o", "out", "--device", "gpu", "--provider", "CUDAExecutionProvider", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "unverified"
    assert "CUDAExecutionProvider is not installed here" in report["reasons"][0]
    assert json.loads((tmp_path / "out/genai_config.json").read_text())["model"]["decoder"]["session_options"][
        "provider_options"
    ]


@pytest.fixture
def interruptible():
    """Children get interrupts, also where the shell that began these tests has them ignored, as it has in the
    background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_leaves_nothing_behind(interruptible, environment, tiny_model, tmp_path):
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "coldpress", "auto-opt", "-m", str(tiny_model), "-o", "out"]
    child = subprocess.Popen(
        command, cwd=tmp_path, env={**environment, "COLDPRESS_CACHE": str(cache)}, stderr=subprocess.PIPE, text=True
    )
    until(lambda: list(cache.glob("scratch/*")), "the beginning of the work")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate()
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert not list(cache.glob("scratch/*")) and not list(tmp_path.glob(".out*"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_while_code_is_made_of_a_string_ends_with_130_too(interruptible, environment, tmp_path):
    """As while dataclasses are made; Python then ends by the signal, whoever catches the exception, if it is its
    own."""
    (tmp_path / "interrupted.py").write_text(
        "from coldpress import cli\n"
        "cli.app.main = lambda *rest, **more: exec('import os, signal; os.kill(os.getpid(), signal.SIGINT); 1 + 1')\n"
        "cli.main([])\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 130
    assert "stopped" in done.stderr
    in_the_background = subprocess.run(["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command], check=False, **options)
    assert in_the_background.returncode == 0, in_the_background.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
def test_a_full_disk_is_said_and_leaves_nothing_behind(environment, tiny_model, tmp_path):
    """A limit on the size of files makes writing fail as a full disk does."""
    cache = tmp_path / "cache"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000)); "
        f"from coldpress.cli import main; main(['auto-opt', '-m', {str(tiny_model)!r}, '-o', 'out', '--no_verify'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**environment, "COLDPRESS_CACHE": str(cache)},
    )  # fmt: skip
    refused(done, 1)
    assert not (tmp_path / "out").exists()
    assert not list(cache.glob("scratch/*")) and not list(cache.glob("results/*/*"))


@pytest.mark.full
def test_two_runs_at_once_share_one_cache(environment, tiny_model, tmp_path):
    cache = str(tmp_path / "cache")
    command = [sys.executable, "-m", "coldpress", "auto-opt", "-m", str(tiny_model), "--no_verify", "-o"]
    runs = [
        subprocess.Popen([*command, f"out{i}"], cwd=tmp_path, env={**environment, "COLDPRESS_CACHE": cache})
        for i in (1, 2)
    ]
    assert [child.wait() for child in runs] == [0, 0]
    first, second = (Path(tmp_path / f"out{i}/model.onnx.data") for i in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    assert len(list(Path(cache).glob("results/*/*"))) == len(set(Path(cache).glob("results/*/*")))


def test_models_are_compared_in_one_table_and_in_turns(run, tiny_model):
    for bits in ("int4", "int8"):
        assert run("run-pass", "press", "-m", tiny_model, "-o", bits, "--precision", bits).returncode == 0
    rows = json.loads(run("evaluate", "int4", "int8", "--source", tiny_model, "--json").stdout)
    assert [row["name"] for row in rows] == ["int4", "int8"]
    assert rows[0]["divergence"]["kl"] > rows[1]["divergence"]["kl"] > 0
    assert rows[0]["size"]["model_bytes"] < rows[1]["size"]["model_bytes"]
    table = run("evaluate", "int4", "int8", "--source", tiny_model).stdout
    assert "int4" in table and "kl" in table
    timed = run("benchmark", "int4", "int8", "--rounds", "1", "--prompt_tokens", "16", "--new_tokens", "4", "--json")
    assert all(row["decode_tokens_per_second"]["value"] > 0 for row in json.loads(timed.stdout))


def test_verify_finds_the_source_in_the_report(run, tiny_model):
    assert run("auto-opt", "-m", tiny_model, "-o", "out", "--precision", "int8", "--no_verify").returncode == 0
    loose = run("verify", "out", "--tolerance", "kl=5,ppl=10,top1=0,generation=0")
    assert loose.returncode == 0, loose.stderr
    assert "verified" in loose.stdout
    assert run("verify", "out", "--tolerance", "kl=0.0000001").returncode == 3


def test_completion_completes(run):
    done = run("", **{"_COLDPRESS_COMPLETE": "bash_complete", "COMP_WORDS": "coldpress au", "COMP_CWORD": "1"})
    assert "auto-opt" in done.stdout


def test_doctor_and_completion_and_cache(run, environment):
    assert run("doctor", "--json").returncode in (0, 1)
    assert "coldpress" in run("completion", "bash").stdout
    assert run("cache", "ls").returncode == 0
    assert "removed" in run("cache", "gc", "--older_than_days", "0", "--cache_dir", "empty").stdout
