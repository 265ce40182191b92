"""Every shape that configurations had in some version since 0.3: one small configuration for each field."""

from __future__ import annotations

import pytest

from coldpress.workflow.olive.translation import translate
from tests.workflow.olive.conftest import EVALUATOR, builder

HF = {"type": "HfModel", "model_path": "some/model"}
CUDA = {"device": "gpu", "provider": "CUDAExecutionProvider"}
CPU = {"device": "cpu", "provider": "CPUExecutionProvider"}
CLIENT = {"subscription_id": "S", "resource_group": "G", "workspace_name": "W"}
WORKSPACE = "azureml://subscriptions/S/resourcegroups/G/workspaces/W"


def local(*accelerators, **keys):
    return {"systems": {"here": {"type": "LocalSystem", "config": {"accelerators": list(accelerators)}}}, **keys}


def workflow(config):
    found = translate({"input_model": HF, "passes": {"press": builder()}, "output_dir": "out", **config})
    assert not found.problems, [str(problem) for problem in found.problems]
    return found.workflow, found.notes


MODELS = {
    "today's": (HF, "some/model"),
    "nested": ({"type": "HfModel", "config": {"model_path": "some/model"}}, "some/model"),
    "without a type": ({"model_path": "some/model"}, "some/model"),
    "hf_config": (
        {"type": "PyTorchModel", "config": {"hf_config": {"model_name": "some/model", "task": "x"}}},
        "some/model",
    ),
    "handler": ({"type": "PyTorchModelHandler", "config": {"hf_config": {"model_name": "some/model"}}}, "some/model"),
    "path before name": (
        {"type": "PyTorchModel", "config": {"model_path": "folder", "hf_config": {"model_name": "some/model"}}},
        "folder",
    ),
    "feature, class": (
        {
            "type": "PyTorchModel",
            "hf_config": {"model_name": "m", "feature": "causal-lm-with-past", "model_class": "X"},
        },
        "m",
    ),
    "onnx": ({"type": "ONNXModel", "model_path": "model.onnx"}, "model.onnx"),
    "onnx handler": ({"type": "ONNXModelHandler", "model_path": "f", "onnx_file_name": "m.onnx"}, "f/m.onnx"),
    "resource file": ({"type": "ONNXModel", "model_path": {"type": "file", "config": {"path": "m.onnx"}}}, "m.onnx"),
    "resource folder": ({"type": "HfModel", "model_path": {"type": "folder", "path": "f"}}, "f"),
    "resource name": ({"type": "HfModel", "model_path": {"type": "string_name", "name": "some/model"}}, "some/model"),
    "registry": (
        {
            "type": "PyTorchModel",
            "config": {
                "model_path": {
                    "type": "azureml_registry_model",
                    "config": {"registry_name": "R", "name": "a/M", "version": 3},
                },
                "model_file_format": "PyTorch.MLflow",
            },
        },
        "azureml://registries/R/models/a/M/versions/3",
    ),
    "workspace": (
        {
            "type": "HfModel",
            "model_path": {"type": "azureml_model", "azureml_client": CLIENT, "name": "M", "version": "1"},
        },
        f"{WORKSPACE}/models/M/versions/1",
    ),
    "job output": (
        {
            "type": "HfModel",
            "model_path": {
                "type": "azureml_job_output",
                "config": {"azureml_client": CLIENT, "job_name": "J", "output_name": "O", "relative_path": "p"},
            },
        },
        "azureml://jobs/J/outputs/O/paths/p",
    ),
}


@pytest.mark.parametrize("shape", MODELS)
def test_models(shape):
    config, name = MODELS[shape]
    passes = {"q": {"type": "OnnxKQuantQuantization"}} if "ONNX" in config.get("type", "") else {"press": builder()}
    assert workflow({"input_model": config, "passes": passes})[0]["model"] == name


@pytest.mark.parametrize("key", ["load_kwargs", "from_pretrained_args", "model_loading_args"])
@pytest.mark.parametrize("where", ["model", "hf_config"])
@pytest.mark.parametrize("inside", ["", "extra_args"])
def test_loading_arguments(key, where, inside):
    arguments = {"trust_remote_code": True, "torch_dtype": "float16", "device_map": "auto", "max_memory": {"0": "1GB"}}
    arguments = {inside: arguments} if inside else arguments
    model = {"type": "PyTorchModel", "config": {"hf_config": {"model_name": "m", key: arguments}}}
    if where == "model":
        model = {**HF, key: arguments}
    found, notes = workflow({"input_model": model})
    assert found["trust_remote_code"] is True
    assert sum("as they are stored" in note for note in notes) == 3


def test_a_module_that_a_script_makes_is_exported_first():
    model = {"type": "PyTorchModel", "config": {"model_path": "m.pt", "model_loader": "load", "model_script": "s.py"}}
    axes = {"dynamic_axes": {"x": {"0": "batch"}}}
    model["config"] |= {"io_config": axes, "dummy_inputs_func": "dummies", "script_dir": "src"}
    passes = {"convert": {"type": "OnnxConversion", "config": {"target_opset": 13}}, "quantize": QUANTIZATION}
    found, _ = workflow({"input_model": model, "passes": passes})
    first, second = found["passes"]
    loading = {"model_path": "m.pt", "loader": "load", "io_config": axes, "dummy_inputs": "dummies"}
    assert first == {"type": "onnx_conversion", "parameters": loading} and found["model"] == "src/s.py"
    assert second["type"] == "onnx_dynamic_quantization"


QUANTIZATION = {"type": "OnnxDynamicQuantization"}


@pytest.mark.parametrize(
    ("model", "place", "hint"),
    [
        ({**HF, "load_kwargs": {"quantization_method": "bitsandbytes"}}, "load_kwargs.quantization_method", "Gptq"),
        ({"type": "PyTorchModel", "model_path": "m.pt", "model_loader": "load"}, "input_model", "model_script"),
        (
            {"type": "PyTorchModel", "hf_config": {"model_name": "m", "components": [{"name": "e"}]}},
            "components",
            "one graph",
        ),
        ({"type": "CompositeModel"}, "type", "one ONNX file"),
        ({"type": "QNNModel"}, "type", "made from"),
        ({"type": "HfModle", "model_path": "m"}, "type", "HfModel"),
        ({"type": "HfModel"}, "input_model", "model_path"),
        ({"type": "HfModel", "model_path": {"type": "azureml_modle", "name": "m"}}, "model_path.type", "azureml_model"),
        ({**HF, "model_pth": "x"}, "model_pth", "model_path"),
        ({**HF, "config": {"model_path": "other"}}, "model_path", "leave one out"),
    ],
    ids=str,
)
def test_models_that_are_not_read(model, place, hint):
    problems = translate({"input_model": model, "passes": {"press": builder()}}).problems
    assert problems and all(problem.hint for problem in problems)
    assert place in problems[0].place and hint in problems[0].hint


TARGETS = {
    "strings": (local("gpu", engine={"target": "here"}), CUDA),
    "mappings": (local({"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}, engine={"host": "here"}), CPU),
    "engine's keys at the top": (local("gpu", target="here"), CUDA),
    "providers of the engine": (
        local("gpu", engine={"target": "here", "execution_providers": ["CUDAExecutionProvider"]}),
        CUDA,
    ),
    "providers alone": ({"engine": {"execution_providers": ["CPUExecutionProvider"]}}, CPU),
    "provider without a device": (local({"execution_providers": ["DmlExecutionProvider"]}, target="here"), {**CUDA, "provider": "DmlExecutionProvider"}),
    "a provider that is no list": (local({"device": "cpu", "execution_providers": "CPUExecutionProvider"}, target="here"), CPU),
    "described in place": ({"engine": {"target": {"type": "LocalSystem", "accelerators": [{"device": "gpu"}]}}}, CUDA),
    "capitals": (local("GPU", target="here"), CUDA),
    "an older device": (local({"device": "cpu_spr", "memory": "1GB"}, target="here"), CPU),
    "only the host has an accelerator": (
        {
            "systems": {"h": {"type": "LocalSystem", "accelerators": ["gpu"]}, "t": {"type": "LocalSystem"}},
            "host": "h",
            "target": "t",
        },
        CUDA,
    ),
    "what falls back to the CPU": (
        local({"execution_providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}, target="here"),
        CUDA,
    ),
    "the provider that has the device": (
        local({"device": "gpu", "execution_providers": ["CPUExecutionProvider", "CUDAExecutionProvider"]}, target="here"),
        CUDA,
    ),
    "several of the engine": ({"engine": {"execution_providers": ["CPUExecutionProvider", "OpenVINOExecutionProvider"]}}, {"device": "cpu", "provider": "OpenVINOExecutionProvider"}),
    "a GPU with the CPU's provider": (local({"device": "gpu", "execution_providers": ["CPUExecutionProvider"]}, target="here"), CPU),
    **{
        f"{device} with {provider}": (
            local({"device": device, "execution_providers": [f"{provider}ExecutionProvider"]}, target="here"),
            {"device": device, "provider": f"{provider}ExecutionProvider"},
        )
        for device, provider in [
            ("gpu", "QNN"), ("npu", "QNN"), ("cpu", "QNN"), ("gpu", "Tensorrt"), ("gpu", "NvTensorRTRTX"), ("gpu", "MIGraphX"),
            ("npu", "Dml"), ("gpu", "Dml"), ("gpu", "WebGpu"), ("npu", "VitisAI"), ("cpu", "OpenVINO"), ("gpu", "OpenVINO"),
            ("npu", "OpenVINO"),
        ]
    },
    "a machine's name": ({"systems": {"vm": {"type": "SurfaceProSystem1796"}}, "engine": {"target": "vm"}}, CUDA),
}  # fmt: skip


@pytest.mark.parametrize("shape", TARGETS)
def test_targets(shape):
    config, target = TARGETS[shape]
    found, _ = workflow(config)
    assert found["target"] == target
    assert "system" not in found


SYSTEMS = {
    "AzureML": (
        {"aml_compute": "c", "hf_token": True, "aml_docker_config": {"base_image": "i", "conda_file_path": "c.yaml"}},
        ("azure_ml", {"compute": "c", "hf_token": True, "base_image": "i", "conda_file": "c.yaml"}),
    ),
    "AzureNDV2System": (
        {"aml_compute": "c", "aml_environment_config": {"name": "e", "version": "3"}, "instance_count": 2, "is_dev": True},
        ("azure_ml", {"compute": "c", "environment": "e:3", "instance_count": 2}),
    ),
    "AzureML with its client": (
        {"aml_compute": "c", "azureml_client_config": {**CLIENT, "read_timeout": 5, "keyvault_name": "k"}, "tags": {"a": "b"}},
        (
            "azure_ml",
            {
                "compute": "c", "subscription_id": "S", "resource_group": "G", "workspace": "W", "read_timeout_s": 5,
                "key_vault": "k", "tags": {"a": "b"},
            },
        ),
    ),
    "Docker": (
        {"image_name": "i", "build_context_path": "b", "dockerfile": "D", "work_dir": "/w", "clean_image": False},
        ("docker", {"image": "i", "build_context": "b", "dockerfile": "D", "work_dir": "/w", "keep_image": True}),
    ),
    "Docker, nested": (
        {"local_docker_config": {"image_name": "i", "build_args": {"a": "b"}, "run_params": {"network": "host"}}},
        ("docker", {"image": "i", "build_arguments": {"a": "b"}, "run_arguments": {"network": "host"}}),
    ),
    "PythonEnvironment": (
        {"python_environment_path": "env/bin", "environment_variables": {"A": "b"}, "prepend_to_path": ["p"]},
        ("python_environment", {"path": "env/bin", "variables": {"A": "b"}, "prepend_to_path": ["p"]}),
    ),
    "PythonEnvironment, made by Olive": (
        {"olive_managed_env": True, "requirements_file": "r.txt"},
        ("python_environment", {"requirements_file": "r.txt"}),
    ),
    "IsolatedORT": ({"python_environment_path": "env"}, ("isolated_ort", {"path": "env"})),
    "Ray": ({"address": "auto", "num_cpus": 2}, ("ray", {"address": "auto", "num_cpus": 2})),
}  # fmt: skip


def test_a_shared_cache_is_a_container_of_azure_blob():
    cache = {"enable_shared_cache": True, "account_name": "a", "container_name": "c", "update_shared_cache": False}
    found, _ = workflow({"cache_config": cache})
    assert found["run"] == {"cache": "abfs://c@a.dfs.core.windows.net/coldpress", "cache_read_only": True}


def test_what_the_target_evaluates_is_measured_there():
    config = {
        "systems": {
            "d": {"type": "Docker", "image_name": "i"},
            "o": {"type": "IsolatedORT", "python_environment_path": "e"},
        },
        "evaluators": {"e": {"metrics": [{"name": "l", "type": "latency", "sub_types": [{"name": "avg"}]}]}},
        "engine": {"host": "d", "target": "o", "evaluator": "e"},
    }
    found, _ = workflow(config)
    assert found["system"] == {"type": "docker", "parameters": {"image": "i"}}
    assert found["metrics"][0]["system"] == {"type": "isolated_ort", "parameters": {"path": "e"}}


@pytest.mark.parametrize("shape", SYSTEMS)
@pytest.mark.parametrize("nested", [True, False])
def test_systems(shape, nested):
    parameters, (kind, expected) = SYSTEMS[shape]
    system = {"type": shape.split(",")[0].split(" ")[0]}
    system = {**system, "config": parameters} if nested else {**system, **parameters}
    found, _ = workflow({"systems": {"there": system}, "engine": {"host": "there", "target": "there"}})
    assert found["system"] == {"type": kind, "parameters": expected}


def test_the_workspace_of_the_whole_is_the_systems():
    system = {"type": "AzureML", "config": {"aml_compute": "c"}}
    found, _ = workflow({"azureml_client": CLIENT, "systems": {"aml": system}, "workflow_host": "aml"})
    assert found["system"]["parameters"]["workspace"] == "W"


@pytest.mark.parametrize(
    ("config", "place", "hint"),
    [
        (local("cpu", "gpu", target="here"), "systems.here.config.accelerators", "one file for each"),
        (local("cpu", target="her"), "target", "here"),
        (local("tpu", target="here"), "systems.here.config.accelerators[0]", ""),
        (
            local({"device": "gpu", "execution_providers": ["ROCMExecutionProvider"]}, target="here"),
            "systems.here.config.accelerators[0].execution_providers[0]",
            "MIGraphX",
        ),
        (
            local({"device": "npu", "execution_providers": ["CUDAExecutionProvider"]}, target="here"),
            "systems.here.config.accelerators[0].execution_providers[0]",
            "gpu",
        ),
        (local({"device": "gpu", "execution_providers": [["MyExecutionProvider", "lib.so"]]}, target="here"), "systems.here.config.accelerators[0].execution_providers[0]", "brings"),
        ({"systems": {"d": {"type": "Docker", "image_nam": "x"}}}, "systems.d.image_nam", "image_name"),
        ({"systems": {"d": {"type": "Dockr"}}}, "systems.d.type", "Docker"),
        ({"systems": {"d": {"type": "Docker"}, "a": {"type": "AzureML"}}, "workflow_host": "d", "host": "a"}, "workflow_host", "same system"),
    ],
    ids=str,
)  # fmt: skip
def test_systems_that_cannot_be_expressed(config, place, hint):
    problems = translate({"input_model": HF, "passes": {"press": builder()}, "output_dir": "out", **config}).problems
    assert [problem.place for problem in problems] == [place]
    assert hint in problems[0].hint


ENGINE = {
    "output_dir": ({"output_dir": "models/x"}, {"output": "models/x"}),
    "output_name": ({"output_name": "m"}, {"output": "out/m"}),
    "cache_dir": ({"cache_dir": "c"}, {"run": {"cache_dir": "c"}}),
    "cache_dir, a list": ({"cache_dir": ["c"]}, {"run": {"cache_dir": "c"}}),
    "cache_config": ({"cache_config": {"cache_dir": "c", "clean_cache": True}}, {"run": {"cache_dir": "c", "clean_cache": True}}),
    "clean_cache": ({"clean_cache": True}, {"run": {"clean_cache": True}}),
    "logs": ({"log_severity_level": 0, "log_to_file": True}, {"run": {"log_level": 0, "log_to_file": True}}),
    "no_artifacts": ({"no_artifacts": True}, {"artifacts": False}),
    "packaging": ({"packaging_config": {"type": "Zipfile", "name": "m"}}, {"packaging": [{"type": "zipfile", "name": "m"}]}),
    "packagings": (
        {"packaging_config": [{"type": "Zipfile"}, {"type": "Dockerfile", "config": {"requirements_file": "r"}}]},
        {"packaging": [{"type": "zipfile"}, {"type": "dockerfile", "requirements_file": "r"}]},
    ),
    "no search": ({"search_strategy": False}, {"search": None}),
    "search": ({"search_strategy": True}, {"search": {"sampler": "grid"}}),
    "search_algorithm": (
        {"search_strategy": {"execution_order": "pass-by-pass", "search_algorithm": "exhaustive"}},
        {"search": {"order": "pass_by_pass", "sampler": "grid"}},
    ),
    "search_algorithm_config": (
        {
            "search_strategy": {
                "execution_order": "joint", "search_algorithm": "tpe", "max_iter": 9, "max_time": 120,
                "search_algorithm_config": {"num_samples": 5, "seed": 7, "multivariate": True, "group": True},
                "stop_when_goals_met": True, "output_model_num": 3,
            }
        },
        {
            "search": {
                "order": "joint", "sampler": "tpe", "trials": 5, "minutes": 2.0, "stop_when_goals_met": True, "keep": 3,
            },
            "seed": 7,
        },
    ),
    "a sampler's keys in the strategy": (
        {"search_strategy": {"sampler": "random", "max_samples": 3, "seed": 0}},
        {"search": {"order": "joint", "sampler": "random", "trials": 3}, "seed": 0},
    ),
    "an older sampler's keys in the strategy": (
        {"search_strategy": {"search_algorithm": "tpe", "num_samples": 3, "max_iter": 2, "seed": 5}},
        {"search": {"order": "joint", "sampler": "tpe", "trials": 2}, "seed": 5},
    ),
    "sampler": (
        {"search_strategy": {"sampler": "random", "sampler_config": {"max_samples": 4, "with_replacement": False}}},
        {"search": {"order": "joint", "sampler": "random", "trials": 4}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", ENGINE)
@pytest.mark.parametrize("nested", [True, False])
def test_keys_of_the_engine(shape, nested):
    config, expected = ENGINE[shape]
    base = {"output_dir": "out"} if "output_dir" not in config else {}
    config = {"input_model": HF, "passes": {"press": builder()}, "evaluator": EVALUATOR, **base}
    config |= {"engine": ENGINE[shape][0]} if nested else ENGINE[shape][0]
    found = translate(config)
    assert not found.problems, [str(problem) for problem in found.problems]
    assert {key: found.workflow.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"workflow_id": "x"}, "content"),
        ({"plot_pareto_frontier": True}, "report.html"),
        ({"evaluate_input_model": True}, "source"),
        ({"clean_evaluation_cache": True}, "clean_cache"),
        ({"ort_log_severity_level": 3, "ort_py_log_severity_level": 3}, "ONNX Runtime"),
        ({"auto_optimizer_config": {"opt_level": 0}}, "passes are named"),
    ],
    ids=str,
)
def test_keys_without_effect_are_noted(keys, words):
    _, notes = workflow({"engine": keys})
    assert any(words in note for note in notes)


@pytest.mark.parametrize(
    ("keys", "place", "words"),
    [
        ({"data_root": "x"}, "data_root", "whole paths"),
        ({"builds": {"a": {"pipeline": ["press"]}}}, "builds", "one file for each"),
        ({"enable_shared_cache": True}, "enable_shared_cache", "cache_config"),
        ({"engine": {"cloud_cache_config": {"account_url": "x"}}}, "engine.cloud_cache_config", "cache_config"),
        (
            {"cache_config": {"enable_shared_cache": True, "account_name": "x"}},
            "cache_config.enable_shared_cache",
            "beside",
        ),
        ({"cache_dir": ["c", "https://x"]}, "cache_dir", "all can reach"),
        ({"packaging_config": {"type": "AzureMLModels"}}, "packaging_config.type", "az ml model create"),
        ({"packaging_config": {"type": "AzureMLData"}}, "packaging_config.type", "az ml data create"),
        ({"packaging_config": {"type": "AzureMLDeployment"}}, "packaging_config.type", "Dockerfile"),
        (
            {"packaging_config": {"type": "Dockerfile", "export_in_mlflow_format": True}},
            "packaging_config.export_in_mlflow_format",
            "Zipfile",
        ),
        ({"search_strategy": {"search_algorithm": "annealing"}}, "search_strategy.search_algorithm", "random"),
        ({"search_strategy": {"execution_order": "joined"}}, "search_strategy.execution_order", "joint"),
        ({"engine": {"outputdir": "x"}}, "engine.outputdir", "output_dir"),
        ({"pases": {}}, "pases", "passes"),
    ],
    ids=str,
)
def test_keys_that_cannot_be_expressed_are_refused(keys, place, words):
    config = {
        "input_model": HF,
        "passes": {"press": builder()},
        "evaluator": EVALUATOR,
        "output_dir": "out",
        **keys,
    }
    problems = translate(config).problems
    assert [problem.place for problem in problems] == [place]
    assert words in problems[0].hint


class TestAutoOptimizer:
    def test_its_place_takes_the_recipe(self):
        found, notes = workflow({"passes": None, "auto_optimizer_config": {"precisions": ["int8"]}})
        assert found["passes"] == [{"type": "press", "parameters": {"precision": "int8"}}]
        assert any("recipe" in note for note in notes)

    def test_precisions_are_searched(self):
        found, _ = workflow(
            {
                "passes": {},
                "auto_optimizer_config": {"precisions": ["int8", "int4"]},
                "search_strategy": True,
                "evaluator": EVALUATOR,
            }
        )
        assert found["passes"][0]["parameters"] == {"precision": {"choice": ["int8", "int4"]}}

    def test_it_can_be_turned_off(self):
        found, _ = workflow({"passes": {}, "auto_optimizer_config": {"disable_auto_optimizer": True}})
        assert found["passes"] == []

    @pytest.mark.parametrize("passes", [{"passes": {}}, {"passes": None}])
    def test_without_it_the_model_is_measured_as_it_is(self, passes):
        found, notes = workflow({**passes, "evaluator": EVALUATOR})
        assert found["passes"] == [] and [one["type"] for one in found["metrics"]] == ["size"]
        assert any("measured as it is" in note for note in notes)
        assert "output" not in translate({"input_model": HF, "evaluator": EVALUATOR}).workflow

    def test_excluded_passes_are_refused(self):
        config = {"input_model": HF, "passes": {}, "auto_optimizer_config": {"excluded_passes": ["OrtPerfTuning"]}}
        [problem] = translate(config).problems
        assert problem.place == "auto_optimizer_config.excluded_passes"


def test_a_configuration_without_a_model():
    [problem] = translate({"passes": {"press": builder()}, "output_dir": "out"}).problems
    assert problem.place == "input_model"


@pytest.mark.parametrize("shape", [{"adapter_path": "a"}, {"config": {"model_path": "m", "adapter_path": "a"}}])
def test_an_adapter_is_put_on_in_front_of_the_pass_that_takes_one(shape):
    model = {"type": "HfModel", **({} if "config" in shape else {"model_path": "m"}), **shape}
    found, _ = workflow({"input_model": model, "passes": {"q": {"type": "Rtn"}, "c": builder()}})
    assert [step["type"] for step in found["passes"]] == ["quantize", "attach_adapters", "press"]
    assert found["passes"][1]["parameters"] == {"adapter_path": ["a"]}


def test_an_adapter_that_no_pass_takes_is_refused():
    [problem] = translate({"input_model": {**HF, "adapter_path": "a"}, "passes": {"q": {"type": "Rtn"}}}).problems
    assert problem.place == "input_model.adapter_path" and "OnnxConversion" in problem.hint
