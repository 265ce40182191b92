"""Whatever stands in a configuration, it is translated or told what is wrong: nothing else is raised."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from coldpress import ColdpressError
from coldpress.workflow.file import load_workflow
from coldpress.workflow.olive.translation import translate

DOCUMENTS = Path(__file__).parent / "documents"
WRONG = (None, 3, "x", True, [], {"a": 1}, [["a"]])
MANY = {
    "input_model": {
        "type": "PyTorchModel",
        "config": {
            "hf_config": {"model_name": "m", "task": "t", "dataset": {"data_name": "d", "input_cols": ["a"]}},
            "model_path": {"type": "azureml_model", "config": {"azureml_client": {"subscription_id": "S"}, "name": "n"}},
            "load_kwargs": {"trust_remote_code": True, "extra_args": {"use_safetensors": True}},
        },
    },
    "azureml_client": {"workspace_name": "W"},
    "systems": {
        "s": {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]},
        "a": {"type": "AzureML", "config": {"aml_docker_config": {"base_image": "i"}, "aml_environment_config": {"name": "e"}}},
        "d": {"type": "Docker", "local_docker_config": {"image_name": "i"}},
    },
    "data_configs": {
        "d": {
            "type": "HuggingfaceContainer",
            "components": {"load_dataset": {"params": {"data_files": ["a"]}}},
            "params_config": {"text_cols": ["t"], "component_kwargs": {"pre_process_data": {"max_seq_len": 4}}},
        },
        "s": {"type": "DummyDataContainer", "load_dataset_config": {"input_names": ["a"], "input_shapes": [[1]]}},
    },
    "evaluators": {
        "e": {
            "metrics": [
                {
                    "name": "a", "type": "accuracy", "data_config": "d", "user_config": {"batch_size": 1},
                    "sub_types": [{"name": "f1_score", "metric_config": {"task": "binary", "compute_params": {"average": "micro"}}}],
                },
                {
                    "name": "l", "type": "size_on_disk", "data_config": "d",
                    "sub_types": [{"name": "bytes", "priority": 1, "goal": {"type": "percent-max-degradation", "value": 1}}],
                }
            ]
        },
        "lm": {"type": "LMEvaluator", "type_args": {"tasks": ["t"]}},
    },
    "passes": {
        "q": [
            {"type": "Gptq", "bits": 4, "overrides": {"a": {"bits": 8}}, "modules_to_not_convert": ["a"], "data_config": "d"},
            {"type": "KQuant", "config": {"group_size": [32, 64]}},
        ],
        "g": {"type": "GptqModel", "dynamic": {"+:lm_head": {"bits": 8}}},
        "b": {
            "type": "ModelBuilder",
            "config": {"precision": "int4", "int4_nodes_to_exclude": ["/lm_head/MatMul"], "extra_options": {"prune_lm_head": True}},
        },
        "o": {"type": "OrtTransformersOptimization", "config": {"opt_level": 1, "float16": True, "keep_io_types": ["logits"]}},
    },
    "pass_flows": [["q", "b", "o"]],
    "engine": {
        "search_strategy": {"search_algorithm": "tpe", "search_algorithm_config": {"num_samples": 3}, "max_time": 60},
        "evaluator": "e", "host": "s", "target": "s", "cache_dir": ["c"], "output_dir": "o", "output_name": "n",
        "packaging_config": [{"type": "Zipfile", "name": "n"}], "execution_providers": ["CPUExecutionProvider"],
        "cache_config": {"clean_cache": True}, "log_severity_level": 1,
    },
    "auto_optimizer_config": {"precisions": ["int4"]},
}  # fmt: skip


def paths(value, path=()):
    """Every place in plain data."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def with_value(data, path, value):
    changed = copy.deepcopy(data)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def documents():
    yield "many", MANY
    for file in DOCUMENTS.glob("*.json"):
        yield file.stem, json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "config"), documents(), ids=lambda value: value if isinstance(value, str) else "")
def test_configurations(name, config):
    for path in paths(config):
        for value in WRONG if name == "many" else WRONG[1::2]:
            found = translate(with_value(config, path, value))
            json.dumps(found.workflow)
            assert all(problem.message for problem in found.problems), (path, value)


NATIVE = {
    "model": "m",
    "passes": [{"any_of": ["press"]}, {"type": "press", "parameters": {"block_size": {"choice": [32]}}}, "press"],
    "target": {"device": "cpu", "provider": "CPUExecutionProvider", "threads": 1},
    "verify": {"tolerance": "kl=1", "data": ["a"]},
    "data": {"d": {"type": "x", "parameters": {}}},
    "metrics": [{"type": "size", "goals": {"model_bytes": {"max_degradation": "1%"}}}],
    "search": {"sampler": "grid"},
    "packaging": ["zipfile", {"type": "dockerfile"}],
    "system": {"type": "azure_ml", "parameters": {"tags": {"a": "b"}}},
    "run": {"log_level": 1},
    "seed": 1,
}


def test_workflows():
    for path in paths(NATIVE):
        for value in WRONG:
            try:
                load_workflow(with_value(NATIVE, path, value))
            except ColdpressError as error:
                assert error.message, (path, value)
