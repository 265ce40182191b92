"""Every key of a configuration makes a difference, or a note says that it makes none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from coldpress.workflow.olive import tables
from coldpress.workflow.olive.translation import is_olive
from tests.workflow.olive.conftest import EVALUATOR, MODEL, builder
from tests.workflow.olive.coverage import passed_over
from tests.workflow.olive.test_wrong_types import documents

CORPUS = "COLDPRESS_OLIVE_CORPUS"


@pytest.mark.parametrize(("name", "config"), documents(), ids=lambda value: value if isinstance(value, str) else "")
def test_documents(name, config):
    assert not passed_over(config)


def value_for(known: tables.Parameter) -> Any:
    """A value that a parameter may have; for those that nothing is said of, any."""
    return next(iter([*known.values, *known.search]), "x")


def given(parameters):
    return {name: value_for(known) for name, known in parameters.items()}


@pytest.mark.parametrize("name", tables.passes())
def test_parameters_of_every_pass(name):
    entry = tables.passes()[name]
    kinds = [tables.passes()[kind] for kind in entry.passes.values()] or [entry]
    parameters = {key: value for kind in kinds for key, value in given(kind.parameters).items()}
    if entry.then:
        parameters |= {**given(entry.then.parameters), entry.then.when: True}
    one = {"type": name, "config": parameters, "disable_search": True, "output_name": "x"}
    assert not passed_over({"input_model": MODEL, "passes": {"one": one}})
    if entry.redundant_after:
        assert not passed_over({"input_model": MODEL, "passes": {"press": builder(), "one": one}})


@pytest.mark.parametrize("kind", tables.data_parameters())
def test_parameters_of_every_kind_of_data(kind):
    containers = tables.data_table("kinds")["containers"]
    tasks = tables.data_table("kinds")["tasks"]
    container = next((name for name, found in containers.items() if found == kind), "HuggingfaceContainer")
    task = next((name for name, found in tasks.items() if found == kind), None)
    parameters = {**given(tables.data_parameters()[kind]), **({"task": task} if task else {})}
    configs = [
        {"name": "a", "type": container, "pre_process_data_config": parameters, "dataloader_config": {"type": "default_dataloader"}},
        {"name": "b", "type": container, "load_dataset_config": {"params": parameters}, "post_process_data_config": {"type": "post_process"}},
    ]  # fmt: skip
    assert not passed_over({"input_model": MODEL, "passes": {"press": builder()}, "data_configs": configs})


@pytest.mark.parametrize("kind", tables.metric_table("types"))
def test_parameters_of_every_metric(kind):
    entry = tables.metric_table("types")[kind]
    config = given(tables.metric_parameters("types", kind, "config")) if "config" in entry else {"x": 1}
    users = given(tables.metric_parameters("types", kind, "user_config")) if "user_config" in entry else {"x": 1}
    goal = {"type": "threshold", "value": 3}
    names = [name for name, found in entry.get("numbers", {"x": "x"}).items() if isinstance(found, str)]
    sub_types = [
        {"name": names[0], "metric_config": config, "goal": goal, "higher_is_better": True, "priority": 1},
        names[-1],
    ]
    metric = {"name": "m", "type": kind, "sub_types": sub_types, "user_config": users}
    evaluators = {"e": {"metrics": [metric, metric]}, "idle": {"metrics": [metric], "type_args": {"x": 1}}}
    assert not passed_over({"input_model": MODEL, "evaluators": evaluators, "evaluator": "e"})


@pytest.mark.parametrize("kind", tables.metric_table("evaluators"))
def test_parameters_of_every_evaluator(kind):
    entry = tables.metric_table("evaluators")[kind]
    parameters = (
        given(tables.metric_parameters("evaluators", kind, "parameters")) if "parameters" in entry else {"x": 1}
    )
    evaluators = {"e": {"name": "e", "type": kind, "type_args": parameters}}
    assert not passed_over({"input_model": MODEL, "evaluators": evaluators, "engine": {"evaluator": "e"}})


@pytest.mark.parametrize("kind", tables.names("system_parameters"))
def test_parameters_of_every_system(kind):
    name = next(name for name, found in tables.names("systems").items() if found == kind)
    keys = [*tables.names("system_parameters")[kind], *tables.keys_of("system")]
    accelerator = {
        "device": "gpu",
        "execution_providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "memory": "1GB",
    }
    system = {"type": name, "config": {**dict.fromkeys(keys, "x"), "accelerators": [accelerator]}}
    systems = {"used": system, "idle": system}
    for used in ({"host": "used"}, {"target": "used"}, {"host": "used", "target": "used"}, {"workflow_host": "used"}):
        assert not passed_over(
            {"input_model": MODEL, "passes": {"press": builder()}, "systems": systems, "engine": used}
        )


#: mappings of a configuration by the table of their keys, each as a path with what stands beside it
PLACES: dict[str, Any] = {
    "root": lambda keys: keys,
    "cache_config": lambda keys: {"cache_config": keys},
    "search_strategy": lambda keys: {
        "search_strategy": {"sampler": "tpe", "sampler_config": {**keys, "max_samples": 3, "seed": 1}, "num_samples": 3},
        "evaluator": EVALUATOR,
    },
    "auto_optimizer_config": lambda keys: {"passes": {}, "auto_optimizer_config": {**keys, "precisions": ["int8", "int4"]}},
    "model": lambda keys: {"input_model": {**MODEL, "task": "text-generation", **keys}},
    "hf_config": lambda keys: {"input_model": {"type": "PyTorchModel", "hf_config": {"model_name": "m", "task": "t", **keys}}},
    "load_kwargs": lambda keys: {"input_model": {**MODEL, "load_kwargs": {**keys, "extra_args": {"trust_remote_code": True}}}},
    "pass": lambda keys: {"passes": {"one": {**builder(), **keys}}},
    "data": lambda keys: {"data_configs": {"d": {"name": "d", "type": "HuggingfaceContainer", **keys}}},
    "packaging": lambda keys: {"packaging_config": [{"type": "Zipfile", "config": keys}]},
}  # fmt: skip


@pytest.mark.parametrize("table", PLACES)
@pytest.mark.parametrize("nothing", [False, True])
def test_keys_of_every_mapping(table, nothing):
    """``nothing``: keys are null, or ask for nothing; else they ask for something."""
    keys = {
        name: next((value for value in known.unless if nothing), None if nothing else {"a": {"b": 1}})
        for name, known in tables.keys_of(table).items()
    }
    config = {"input_model": MODEL, "passes": {"press": builder()}, **PLACES[table](keys)}
    assert not passed_over(config)


def test_data_beside_the_model():
    dataset = {"data_name": "glue", "input_cols": ["a"], "component_kwargs": {"pre_process_data": {"max_samples": 5}}}
    hf = {"model_name": "m", "task": "text-classification", "dataset": {**dataset, "max_samples": 7, "model_name": "m"}}
    metric = {
        "name": "l",
        "type": "latency",
        "data_config": "__input_model_data_config__",
        "sub_types": [{"name": "avg"}],
    }
    assert not passed_over(
        {
            "input_model": {"type": "PyTorchModel", "config": {"hf_config": hf}},
            "engine": {"evaluator": {"metrics": [metric]}},
        }
    )


def test_flows_and_alternatives():
    passes = {
        "convert": {"type": "OnnxConversion", "config": {"target_opset": 17}},
        "single": {"type": "OrtTransformersOptimization", "config": {"model_type": "gpt2", "float16": False, "opt_level": 0}},
        "half": {"type": "OrtTransformersOptimization", "config": {"model_type": "gpt2", "float16": True, "keep_io_types": False}},
        "round": [{"type": "OnnxMatMul4Quantizer", "block_size": 32}, {"type": "OnnxMatMul4Quantizer", "block_size": 64}],
        "idle": {"type": "OnnxConversion", "config": {"target_opset": 17}},
    }  # fmt: skip
    flows = [["convert", "single", "round"], ["convert", "half", "round"]]
    config = {"input_model": MODEL, "passes": passes, "pass_flows": flows}
    assert not passed_over(config)
    assert not passed_over({**config, "search_strategy": True, "evaluator": EVALUATOR})
    assert not passed_over({**config, "pass_flows": [["convert", "single"], ["half", "round", "convert"]]})


@pytest.mark.full
def test_configurations_of_others():
    """Those in a file of JSON lines, each with the configuration in ``text``, or in the folder of JSON files that is
    named."""
    if CORPUS not in os.environ:
        pytest.skip(f"no configurations of others are at hand: {CORPUS} names none")
    found = {name: keys for name, config in corpus(Path(os.environ[CORPUS])) if (keys := passed_over(config))}
    assert not found


def corpus(place: Path):
    if place.is_dir():
        texts = [(str(file), file.read_text(encoding="utf-8-sig")) for file in sorted(place.rglob("*.json"))]
    else:
        lines = place.read_text(encoding="utf-8").splitlines()
        texts = [(f"{place.name}, line {number}", json.loads(line)["text"]) for number, line in enumerate(lines, 1)]
    for name, text in texts:
        config = json.loads(text)
        if isinstance(config, dict) and is_olive(config):
            yield name, config
