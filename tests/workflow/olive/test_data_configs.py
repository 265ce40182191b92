"""Data configs in every shape they have had, and what passes take of them."""

from __future__ import annotations

import dataclasses

import pytest

from coldpress import parts
from coldpress.workflow.olive import tables
from coldpress.workflow.olive.translation import translate
from tests.workflow.olive.conftest import MODEL, builder

LOAD = {"data_name": "json", "data_files": "rows.jsonl", "split": "train"}
PREPARE = {"text_cols": "text", "strategy": "join", "max_seq_len": 64}
EXPECTED = {
    "type": "text_corpus",
    "parameters": {
        "data_name": "json", "data_files": ["rows.jsonl"], "split": "train", "text_cols": ["text"], "strategy": "join",
        "max_seq_len": 64,
    },
}  # fmt: skip
HUB = {"type": "HuggingfaceContainer"}
SHAPES = {
    "today's": [
        {"name": "d", **HUB, "load_dataset_config": LOAD, "pre_process_data_config": PREPARE, "dataloader_config": {}}
    ],
    "params": [
        {"name": "d", **HUB, "load_dataset_config": {"params": LOAD}, "pre_process_data_config": {"params": PREPARE}}
    ],
    "component types": [
        {
            "name": "d", "load_dataset_config": {"type": "huggingface_dataset", **LOAD},
            "pre_process_data_config": {"type": "text_generation_huggingface_pre_process", "params": PREPARE},
        }
    ],
    "mapping": {"d": {"name": "d", **HUB, "load_dataset_config": LOAD, "pre_process_data_config": PREPARE}},
    "mapping without names": {"d": {**HUB, "load_dataset_config": LOAD, "pre_process_data_config": PREPARE}},
    "params_config": {"d": {"name": "d", **HUB, "params_config": {**LOAD, **PREPARE, "task": "text-generation"}}},
    "components": {
        "d": {
            "name": "d", **HUB,
            "components": {
                "load_dataset": {"name": "l", "type": "huggingface_dataset", "params": LOAD},
                "pre_process_data": {"params": {**PREPARE, "max_seq_len": 1}},
            },
            "params_config": {"max_seq_len": 2, "component_kwargs": {"pre_process_data": {"max_seq_len": 64}}},
        }
    },
    "older names": {
        "d": {
            **HUB,
            "params_config": {
                **LOAD, "text_cols": ["text"], "corpus_strategy": "join", "source_max_len": 64, "dataset_type": "corpus",
                "model_name": "some/model",
            },
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", tables.data_parameters())
def test_parameters_become_fields_of_ours(kind):
    fields = {field.name for field in dataclasses.fields(parts.find("data", kind))}
    for theirs, known in tables.data_parameters()[kind].items():
        assert not known.to or known.to in fields, theirs


def translated(configs, **keys):
    passes = keys.pop("passes", {"press": builder()})
    return translate({"input_model": MODEL, "passes": passes, "output_dir": "out", "data_configs": configs, **keys})


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    found = translated(SHAPES[shape])
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.workflow["data"] == {"d": EXPECTED}


def hub(task=None, **parameters):
    return [{"name": "d", **HUB, "pre_process_data_config": {**({"task": task} if task else {}), **parameters}}]


@pytest.mark.parametrize(
    ("configs", "kind", "parameters"),
    [
        (hub(), "text_corpus", {}),
        (hub(strategy="join-sliding-window", stride=8), "text_corpus", {"strategy": "sliding_window", "stride": 8}),
        (hub(text_template="{a}", text_cols=["a"]), "text_corpus", {"text_template": "{a}"}),
        (
            hub("text-classification", input_cols=["a", "b"], label_cols=["c"]),
            "text_classification",
            {"text_col": "a", "pair_col": "b", "label_col": "c"},
        ),
        (
            [{"name": "d", "type": "DummyDataContainer", "load_dataset_config": {"input_names": ["a"], "input_shapes": [[1, 3]]}}],
            "synthetic",
            {"shapes": {"a": [1, 3]}},
        ),
        (hub("ner", input_cols=["tokens"], label_col="tags"), "token_classification", {"words_col": "tokens", "labels_col": "tags"}),
    ],
    ids=str,
)  # fmt: skip
def test_kinds_and_their_parameters(configs, kind, parameters):
    found = translated(configs)
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.workflow["data"]["d"] == {"type": kind, "parameters": parameters}


def test_the_models_task_decides_when_the_data_does_not_say():
    model = {"type": "PyTorchModel", "hf_config": {"model_name": "m", "task": "text-classification"}}
    found = translate({"input_model": model, "passes": {"press": builder()}, "data_configs": hub()})
    assert found.workflow["data"]["d"]["type"] == "text_classification"


def test_data_beside_the_model_is_data_of_its_own():
    dataset = {"data_name": "glue", "subset": "mrpc", "split": "validation", "input_cols": ["a"], "label_cols": ["b"]}
    model = {"model_name": "m", "task": "text-classification", "dataset": {**dataset, "batch_size": 4}}
    config = {"type": "PyTorchModel", "config": {"hf_config": model}}
    found = translate({"input_model": config, "passes": {"press": builder()}})
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.workflow["data"]["input_model_data"]["parameters"] == {
        "data_name": "glue", "subset": "mrpc", "split": "validation", "text_col": "a", "label_col": "b", "batch_size": 4,
    }  # fmt: skip


def test_data_beside_the_model_is_told_where_it_stands():
    model = {"type": "PyTorchModel", "config": {"hf_config": {"model_name": "m", "dataset": {"data_nam": "glue"}}}}
    [problem] = translate({"input_model": model, "passes": {"press": builder()}}).problems
    assert problem.place == "input_model.config.hf_config.dataset.data_nam" and "data_name" in problem.hint


def test_olives_name_for_data_beside_the_model():
    hf = {"model_name": "m", "task": "text-classification", "dataset": {"data_name": "glue", "input_cols": ["a"]}}
    metric = {"type": "latency", "data_config": "__input_model_data_config__", "sub_types": [{"name": "avg"}]}
    config = {"input_model": {"hf_config": hf}, "passes": {"press": builder()}, "evaluator": {"metrics": [metric]}}
    assert translate(config).workflow["metrics"][0]["parameters"]["data"] == "input_model_data"
    del hf["dataset"]
    [problem] = translate(config).problems
    assert problem.place == "evaluator.metrics[0].data_config" and "hf_config.dataset" in problem.hint


def test_data_that_cannot_be_read_is_told_of_once():
    metric = {"type": "latency", "data_config": "d", "sub_types": [{"name": "avg"}]}
    config = {"data_configs": hub("vision-vqa"), "evaluator": {"metrics": [metric]}}
    [problem] = translate({"input_model": MODEL, "passes": {"press": builder()}, **config}).problems
    assert problem.place == "data_configs[0]"


def test_files_may_lie_in_azure():
    client = {"subscription_id": "S", "resource_group": "G", "workspace_name": "W"}
    files = {
        "type": "azureml_datastore",
        "config": {"azureml_client": client, "datastore_name": "D", "relative_path": "p/q"},
    }
    configs = [{"name": "d", **HUB, "load_dataset_config": {"params": {"data_name": "json", "data_files": files}}}]
    uri = "azureml://subscriptions/S/resourcegroups/G/workspaces/W/datastores/D/paths/p/q"
    assert translated(configs).workflow["data"]["d"]["parameters"]["data_files"] == [uri]
    shared = {**files, "config": {**files["config"], "azureml_client": None}}
    configs[0]["load_dataset_config"]["params"]["data_files"] = shared
    assert translated(configs, azureml_client=client).workflow["data"]["d"]["parameters"]["data_files"] == [uri]


@pytest.mark.parametrize(
    ("configs", "place", "hint"),
    [
        (hub(max_seq_len="long"), "data_configs[0].pre_process_data_config.max_seq_len", ""),
        ([{**hub()[0], "post_process_data_config": {"type": "mine"}}], "data_configs[0]", "post_process"),
        ([{"name": "d", "type": "HugingfaceContainer"}], "data_configs[0]", "HuggingfaceContainer"),
        (hub(text_colls=["a"]), "data_configs[0].pre_process_data_config.text_colls", "text_cols"),
        (hub(text_formatting_func="f"), "data_configs[0].pre_process_data_config.text_formatting_func", "text_template"),
        (hub(dataset_type="pair"), "data_configs[0].pre_process_data_config.dataset_type", "text_template"),
        (hub("text-classification", input_cols=["a", "b", "c"]), "data_configs[0].pre_process_data_config.input_cols", "one or two"),
        (hub("vision-vqa"), "data_configs[0]", "user_script"),
        ([*hub(), *hub()], "data_configs[1]", "name of its own"),
        ({"d": {**HUB, "params_config": {"data_dir": "x"}}}, "data_configs.d.params_config.data_dir", "data_files"),
        ([{"name": "d", **HUB, "load_dataset_confg": {}}], "data_configs[0].load_dataset_confg", "load_dataset_config"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(configs, place, hint):
    problems = translated(configs).problems
    assert [problem.place for problem in problems] == [place]
    assert hint in (problems[0].hint or "")


@pytest.mark.parametrize("name", ["Gptq", "AutoAWQQuantizer", "SpinQuant", "OnnxMatMul4Quantizer"])
def test_a_pass_that_calibrates_takes_the_data_as_it_is(name):
    found = translated(hub(subset="s"), passes={"q": {"type": name, "data_config": "d"}})
    assert not found.problems
    assert found.workflow["passes"][0]["parameters"]["data"] == "d"
    assert found.workflow["data"]["d"]["parameters"]["subset"] == "s"


def test_components_of_a_script_make_the_batches():
    rows, change = {"type": "mine", "params": {"count": 3}}, {"type": "change", "by": 2}
    found = translated(
        [{"name": "d", "user_script": "s.py", "load_dataset_config": rows, "pre_process_data_config": change}]
    )
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.workflow["data"]["d"] == {
        "type": "user_script",
        "parameters": {
            "script": "s.py",
            "load_dataset": {"type": "mine", "count": 3},
            "pre_process_data": {"type": "change", "by": 2},
        },
    }
