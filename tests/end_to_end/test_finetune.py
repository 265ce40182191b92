"""``finetune`` as the documents type it, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.waiting import until

TEMPLATE = r"<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"


@pytest.fixture
def folder(tmp_path, tiny_model):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/awq").symlink_to(tiny_model)
    (tmp_path / "data").mkdir()
    rows = ({"prompt": f"what is in town {n}", "response": "go to the museum, then rest"} for n in range(30))
    (tmp_path / "data/travel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(*more: object) -> list[str]:
    given = [
        *("finetune", "--method", "lora", "--model_name_or_path", "models/awq", "--data_files", "data/travel.jsonl"),
        *("--data_name", "json", "--text_template", TEMPLATE, "--output_path", "./models/ft", "--log_level", "1"),
    ]
    return [sys.executable, "-m", "coldpress", *given, *map(str, more)]


def environment(folder):
    return {**os.environ, "COLDPRESS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(folder, *more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*more), capture_output=True, text=True, cwd=folder, env=environment(folder), check=False
    )


FLAGS = ("--max_steps", 3, "--learning_rate", "1e-2", "--lora_r", 4, "--threads", 1, "--per-device-train-batch-size=4")


def test_the_documents_command_writes_model_and_adapter(folder):
    done = run(folder, *FLAGS, "--target_modules", "q_proj,v_proj", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["format"] == "adapter" and report["verdict"] == "fine-tuned"
    assert report["tuning"]["steps"] == 3 and report["tuning"]["rows_in_step"] == 4
    assert [one["step"] for one in report["timings"]] == ["lora", "verify"]
    assert "lora: " in done.stderr and "fine-tuned; the loss fell" in done.stderr and "Warning" not in done.stderr
    assert (folder / "models/ft/model/config.json").is_file()
    config = json.loads((folder / "models/ft/adapter/adapter_config.json").read_text())
    assert config["r"] == 4 and sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    page = (folder / "models/ft/report.html").read_text()
    assert "Loss" in page and "held out" in page
    assert "PeftModel.from_pretrained" in (folder / "models/ft/README.md").read_text()
    parameters = report["passes"][0]["parameters"]
    assert parameters["train_data"]["parameters"]["text_template"] == TEMPLATE
    again = run(folder, *FLAGS, "--target_modules", "q_proj", "--target_modules", "v_proj")
    assert again.returncode == 0 and "is up to date" in again.stderr


@pytest.mark.full
def test_two_processes_train_together(folder):
    """As on two GPUs, here with gloo on the CPU: each has half of a step's rows, and one writes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = command(*FLAGS, "--ddp_backend", "gloo", "--gradient_accumulation_steps", 1, "--torch_dtype", "float32")
    done = subprocess.run(
        [*launch, *words[1:]], capture_output=True, text=True, cwd=folder, env=environment(folder), check=False
    )
    assert done.returncode == 0, done.stderr
    tuning = json.loads((folder / "models/ft/report.json").read_text())["tuning"]
    assert tuning["rows_in_step"] == 8 and tuning["held_out"]["loss_after"] < tuning["held_out"]["loss_before"]
    assert (folder / "models/ft/adapter/adapter_model.safetensors").is_file()
    assert done.stdout.count("Fine-tuned.") == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--max_step", 3), ("no option '--max_step'", "--max_steps")),
        (("--method", "qlor"), ("'qlor' is not one of lora, qlora", "qlora")),
        (("--target_modules", "qkv_proj"), ("has no module 'qkv_proj'; it has", "q_proj")),
        (("--data_files", "data/none.jsonl"), ("data/none.jsonl does not exist",)),
        (("--learning_rate", "fast"), ("--learning_rate: 'fast'",)),
    ],
)
def test_mistakes_are_told_before_any_work(folder, more, words):
    done = run(folder, *more)
    assert done.returncode == 2 and done.stderr.splitlines()[-2:][0].startswith(("error", "note")), done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (folder / "models/ft").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.full
def test_a_killed_run_goes_on(folder):
    flags = ("--max_steps", 40, "--save_steps", 1, "--learning_rate", "1e-3", "--lora_r", 4, "--threads", 1)
    child = subprocess.Popen(command(*flags), cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL)
    until(lambda: list((folder / "cache").rglob("checkpoint-*/trainer_state.json")), "a checkpoint", seconds=120)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (folder / "models/ft").exists()
    done = run(folder, *flags, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tuning"]["resumed_at"] >= 1
