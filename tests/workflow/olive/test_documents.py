"""The configurations of the documents, as printed there: read and checked whole, and run with a small model.

The documents about fine-tuning print theirs in blocks, with two variants of data and model; here they are put together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import coldpress
from coldpress.workflow.file import load_workflow
from coldpress.workflow.olive.translation import translate
from tests.architectures import checkpoint
from tests.conftest import write_tokenizer

FOLDER = Path(__file__).parent / "documents"


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


class TestSuite:
    def test_it_becomes_a_search_for_the_fastest_int4_model(self):
        translation = translate(read("suite"))
        assert not translation.problems
        workflow = translation.workflow
        assert workflow["model"] == "Qwen/Qwen2.5-0.5B-Instruct"
        [press] = workflow["passes"]
        assert press["type"] == "press" and press["parameters"]["precision"] == "int4"
        assert press["parameters"]["block_size"] == {"choice": [32, 64, 128]}
        assert workflow["search"] == {"sampler": "tpe", "order": "joint"}
        assert workflow["target"] == {"device": "cpu", "provider": "CPUExecutionProvider"}
        assert workflow["output"] == "models/optimized" and workflow["run"] == {"cache_dir": "cache"}
        [note] = [note for note in translation.notes if note.startswith("passes.optimization")]
        assert "OrtTransformersOptimization has no effect here: the press writes fused operators" in note

    def test_what_is_measured_ranks_the_results(self):
        [latency] = translate(read("suite")).workflow["metrics"]
        assert latency == {"type": "latency", "goals": {"latency_avg_ms": {"priority": 1}}}
        load_workflow(FOLDER / "suite.json")

    def test_its_passes_run(self, tiny_model, tmp_path):
        """As printed, with another model and paths; one value of what it leaves to the search."""
        config = json.loads(json.dumps(read("suite")).replace("Qwen/Qwen2.5-0.5B-Instruct", str(tiny_model)))
        config["engine"] |= {"cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "out")}
        del config["engine"]["search_strategy"], config["engine"]["evaluator"]
        workflow = load_workflow(config)
        report = coldpress.run(workflow)
        assert (tmp_path / "out/model.onnx").exists() and report.data["quality"]["kl"] > 0
        assert {layer["bits"] for layer in report.data["layers"]} == {4, 8}  # the head has 8

    @pytest.mark.full
    def test_it_runs_as_printed_with_another_models_name(self, tmp_path):
        text = (FOLDER / "suite.json").read_text(encoding="utf-8")
        file = tmp_path / "olive-config.json"
        file.write_text(text.replace("Qwen/Qwen2.5-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"))
        command = [sys.executable, "-m", "coldpress", "run", "--config", file.name]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "models/optimized/report.json").read_text(encoding="utf-8"))
        assert report["verdict"] == "verified" and {layer["bits"] for layer in report["layers"]} == {4, 8}
        points = report["search"]["points"]
        assert len(points) == 6 and all(one["numbers"]["latency.latency_avg_ms"] > 0 for one in points)
        assert "latency" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["finetuning_local", "finetuning_azure"])
class TestFinetuning:
    def test_it_is_read_whole(self, name):
        translation = translate(read(name))
        assert not translation.problems
        workflow = translation.workflow
        assert workflow["system"] == {
            "type": "azure_ml",
            "parameters": {
                "compute": "Your Azure AI Studio / Azure Machine Learning Service Compute Name",
                "hf_token": True,
                "base_image": "Your Azure AI Studio / Azure Machine Learning Service docker",
                "conda_file": "conda.yaml",
            },
        }
        assert workflow["target"] == {"device": "gpu", "provider": "CUDAExecutionProvider"}
        assert workflow["trust_remote_code"] is True
        assert workflow["output"] == "../model-cache/models/phi3-finetuned"
        assert workflow["run"] == {"cache_dir": "../model-cache/models/phi3-finetuned/cache", "log_level": 0}
        assert "search" not in workflow
        assert workflow["passes"][-1] == {"type": "press", "parameters": {"precision": "int4"}}
        assert "systems.azure_arc: not used by the engine, left out" in translation.notes

    def test_its_data(self, name):
        data = translate(read(name)).workflow["data"]["dataset_default_train"]
        assert data["type"] == "text_corpus"
        parameters = data["parameters"]
        assert parameters["data_name"] == "json" and parameters["split"] == "train"
        assert parameters["strategy"] == "join" and parameters["max_seq_len"] == 2048
        if name.endswith("local"):
            assert parameters["data_files"] == ["dataset/dataset-classification.json"]
            assert parameters["text_template"] == "### Text: {phrase}\n### The tone is:\n{tone}"
        else:
            [file] = parameters["data_files"]
            assert file.startswith("azureml://subscriptions/Your Azure Subscrition ID/resourcegroups/")
            assert file.endswith("/datastores/workspaceblobstore/paths/Your train_data.json Azure ML Location")

    def test_its_model(self, name):
        expected = {
            "finetuning_local": "model-cache/microsoft/phi-3-mini",
            "finetuning_azure": "azureml://registries/azureml-msr/models/microsoft/Phi-3-mini-4k-instruct/versions/11",
        }
        assert translate(read(name)).workflow["model"] == expected[name]

    def test_its_passes(self, name):
        lora, merge, press = translate(read(name)).workflow["passes"]
        assert (lora["type"], merge["type"], press["type"]) == ("lora", "merge_adapter_weights", "press")
        parameters = lora["parameters"]
        assert (
            parameters["target_modules"] == ["o_proj", "qkv_proj"]
            and parameters["train_data"] == "dataset_default_train"
        )
        assert (parameters["lora_r"], parameters["lora_alpha"], parameters["lora_dropout"]) == (64, 64, 0.1)
        assert parameters["eval_dataset_size"] == 0.3
        assert parameters["training_args"]["evaluation_strategy"] == "steps" and "double_quant" not in parameters


def test_the_passes_about_fine_tuning_run_on_this_machine(tmp_path):
    """As printed, with a small model of Phi-3's kind, another file of rows, and this machine in place of Azure."""
    folder = checkpoint("phi3", tmp_path / "phi3", vocab_size=512, max_position_embeddings=2048).folder
    write_tokenizer(folder)
    rows = [{"phrase": f"I saw number {n} today, and it is here", "tone": "Joy"} for n in range(500)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = read("finetuning_local")
    config["input_model"]["config"]["hf_config"]["model_name"] = str(folder)
    config["data_configs"][0]["load_dataset_config"]["params"]["data_files"] = str(tmp_path / "rows.json")
    config["passes"]["lora"]["config"]["training_args"]["max_steps"] = 2
    here = {"type": "LocalSystem", "accelerators": ["cpu"]}
    config["engine"] |= {"host": here, "target": here, "execution_providers": ["CPUExecutionProvider"]}
    config["engine"] |= {"cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "out")}
    report = coldpress.run(load_workflow(config))
    assert (tmp_path / "out/model.onnx").exists()
    told = report.data["tuning"]
    assert told["steps"] == 2 and told["rows_in_step"] == 4 and told["held_out"]["rows"] >= 2
    assert told["held_out"]["loss_after"] < told["held_out"]["loss_before"]
    assert any("group_by_length had no effect" in note for note in report.data["source"]["notes"])
    assert [step["name"] for step in report.data["passes"]] == ["lora", "merge_adapter_weights", "press"]
    assert report.data["quality"]["kl"] < 1  # of the merged model, not of the one before


def test_azure_is_refused_when_a_run_asks_for_it(tiny_model, tmp_path):
    config = read("finetuning_azure")
    config["passes"] = {"builder": config["passes"]["builder"]}
    with pytest.raises(coldpress.ColdpressError, match="running jobs on Azure ML is a later capability"):
        coldpress.run(load_workflow(config), cache_dir=tmp_path)
    config["engine"]["host"] = config["engine"]["target"] = {"type": "LocalSystem", "accelerators": ["gpu"]}
    with pytest.raises(coldpress.ColdpressError, match="fetching a file from Azure ML is a later capability"):
        coldpress.run(load_workflow(config), cache_dir=tmp_path)
    del config["data_configs"]
    with pytest.raises(coldpress.ColdpressError, match="fetching a model from Azure ML is a later capability"):
        coldpress.run(load_workflow(config), cache_dir=tmp_path)
