"""Evaluators: metrics, their numbers, goals and priorities."""

from __future__ import annotations

import dataclasses

import pytest

from coldpress import parts
from coldpress.workflow.olive import tables
from coldpress.workflow.olive.translation import translate
from tests.workflow.olive.conftest import MODEL, builder

DATA = [{"name": "d", "type": "HuggingfaceContainer", "pre_process_data_config": {"task": "text-classification"}}]


def translated(*metrics, **keys):
    config = {"input_model": MODEL, "passes": {"press": builder()}, "output_dir": "out", "data_configs": DATA}
    return translate({**config, "evaluators": {"e": {"metrics": list(metrics)}}, "engine": {"evaluator": "e", **keys}})


def metric(kind, *sub_types, **keys):
    return {"name": kind, "type": kind, "sub_types": list(sub_types), **keys}


@pytest.mark.parametrize("kind", ["latency", "throughput", "size_on_disk", "accuracy"])
def test_numbers_of_olive_are_numbers_of_ours(kind):
    entry = tables.metric_table("types")[kind]
    for number in entry["numbers"].values():
        if isinstance(number, str):
            assert number in parts.find("metrics", entry["metric"]).values
        elif "number" in number:
            assert number["number"] in parts.find("metrics", number["metric"]).values


@pytest.mark.parametrize(("table", "name", "which"), [
    ("types", "latency", "config"), ("types", "latency", "user_config"), ("types", "accuracy", "config"),
    ("types", "accuracy", "user_config"), ("evaluators", "LMEvaluator", "parameters"),
])  # fmt: skip
def test_parameters_become_fields_of_ours(table, name, which):
    metric = tables.metric_table(table)[name]["metric"]
    fields = {field.name for field in dataclasses.fields(parts.find("metrics", metric))}
    for theirs, known in tables.metric_parameters(table, name, which).items():
        assert not known.to or known.to in fields, theirs


SIZE = {"name": "bytes"}


@pytest.mark.parametrize(
    ("sub_type", "goal"),
    [
        (SIZE, None),
        ({**SIZE, "priority": -1}, None),
        ({**SIZE, "priority": 1, "higher_is_better": False}, {"priority": 1}),
        ({**SIZE, "goal": {"type": "threshold", "value": 5}}, {"threshold": 5}),
        ({**SIZE, "goal": {"type": "max-degradation", "value": 0.1}}, {"max_degradation": 0.1}),
        ({**SIZE, "goal": {"type": "min-improvement", "value": 0.1}}, {"min_improvement": 0.1}),
        ({**SIZE, "goal": {"type": "percent-max-degradation", "value": 1}}, {"max_degradation": "1%"}),
        (
            {**SIZE, "priority": 2, "goal": {"type": "percent-min-improvement", "value": 20.5}},
            {"priority": 2, "min_improvement": "20.5%"},
        ),
    ],
    ids=str,
)
def test_goals(sub_type, goal):
    found = translated(metric("size_on_disk", sub_type))
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.workflow["metrics"] == [{"type": "size", **({"goals": {"model_bytes": goal}} if goal else {})}]


def test_in_a_search_the_only_number_ranks():
    found = translated(metric("size_on_disk", SIZE), search_strategy=True)
    assert found.workflow["metrics"][0]["goals"] == {"model_bytes": {"priority": 1}}
    assert any("model_bytes of size ranks the results" in note for note in found.notes)


def test_an_evaluator_may_stand_in_the_engine():
    evaluator = {"metrics": [metric("size_on_disk", SIZE)]}
    found = translate({"input_model": MODEL, "passes": {"press": builder()}, "engine": {"evaluator": evaluator}})
    assert found.workflow["metrics"] == [{"type": "size"}]


def test_without_an_evaluator_nothing_is_said_of_metrics():
    found = translate({"input_model": MODEL, "passes": {"press": builder()}, "evaluators": {"e": {"metrics": []}}})
    assert "metrics" not in found.workflow
    assert "evaluators.e: not used by the engine, left out" in found.notes


def test_latency_and_throughput():
    config = {"metric_config": {"warmup_num": 3, "repeat_test_num": 5, "sleep_num": 1}}
    latency = metric(
        "latency", {"name": "p95", "priority": 1, **config}, user_config={"io_bind": True}, data_config="d"
    )
    found = translated(latency, metric("throughput", {"name": "avg"}))
    assert not found.problems, [str(problem) for problem in found.problems]
    parameters = {"io_binding": True, "warmup": 3, "repeats": 5, "sleep_ms": 1000.0, "data": "d"}
    assert found.workflow["metrics"] == [
        {"type": "latency", "parameters": parameters, "goals": {"latency_p95_ms": {"priority": 1}}},
        {"type": "latency"},
    ]


def test_accuracy_computes_the_numbers_that_are_named():
    config = {"metric_config": {"task": "binary", "num_classes": 2}}
    accuracy = metric("accuracy", {"name": "f1_score", **config}, {"name": "perplexity"}, data_config="d")
    found = translated(accuracy)
    assert not found.problems, [str(problem) for problem in found.problems]
    first, second = found.workflow["metrics"]
    assert first == {"type": "accuracy", "parameters": {"average": "binary", "numbers": ["f1"], "data": "d"}}
    assert second["type"] == "perplexity"


AUDIO = {"data_name": "json", "data_files": "rows.jsonl", "data_dir": "sounds"}


@pytest.mark.parametrize(
    ("prepare", "task"),
    [
        ({"type": "speech_transcription_pre_process", "audio_col": "file", "text_col": "said"}, "speech"),
        ({"type": "audio_classification_pre_process", "label_cols": ["class"]}, None),
    ],
    ids=str,
)
def test_classes_of_sounds_are_no_speech(prepare, task):
    configs = [
        {"name": "d", "type": "HuggingfaceContainer", "load_dataset_config": AUDIO, "pre_process_data_config": prepare}
    ]
    number = "wer" if task else "accuracy_score"
    config = {"metrics": [metric("accuracy", {"name": number}, data_config="d")]}
    found = translate({"input_model": MODEL, "passes": {"p": builder()}, "data_configs": configs, "evaluator": config})
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.workflow["metrics"][0]["parameters"].get("task") == task


def test_two_metrics_that_are_the_same_are_one():
    one = metric("size_on_disk", {**SIZE, "priority": 1})
    found = translated(one, {**one, "name": "another"})
    assert found.workflow["metrics"] == [{"type": "size", "goals": {"model_bytes": {"priority": 1}}}]
    assert any("measured once" in note for note in found.notes)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({"multiclass": False, "top_k": 1}, {"average": "binary"}),
        ({"compute_params": {"average": "micro"}}, {"average": "micro"}),
        ({"compute_param": {"average": "micro"}}, {"average": "micro"}),
    ],
    ids=str,
)
def test_older_keys_of_accuracy(config, parameters):
    found = translated(metric("accuracy", {"name": "f1_score", "metric_config": config}, data_config="d"))
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.workflow["metrics"][0]["parameters"] == {"numbers": ["f1"], "data": "d", **parameters}


def test_functions_of_a_script_make_data_and_read_answers():
    given = {"dataloader_func": "load", "batch_size": 4, "data_dir": "d", "func_kwargs": {"dataloader_func": {"n": 1}}}
    timed = metric("latency", {"name": "avg"}, user_config={"user_script": "s.py", **given})
    found = translated(timed)
    assert not found.problems, [str(problem) for problem in found.problems]
    own = {"script": "s.py", "dataloader_func": "load", "data_dir": "d", "batch_size": 4, "func_kwargs": {"n": 1}}
    assert found.workflow["data"]["load"] == {"type": "user_script", "parameters": own}
    assert found.workflow["metrics"][0]["parameters"]["data"] == "load"
    more = {"user_script": "s.py", "dataloader_func": "load", "post_processing_func": "read"}
    right = translated(metric("accuracy", {"name": "accuracy_score"}, user_config=more))
    assert {"script": "s.py", "function": "read"}.items() <= right.workflow["metrics"][0]["parameters"].items()
    called = {"user_script": "s.py", "evaluate_func": "judge", "evaluate_func_kwargs": {"k": 1}}
    own = translated(metric("custom", {"name": "x", "higher_is_better": True}, user_config=called))
    assert own.workflow["metrics"][0] == {
        "type": "custom",
        "parameters": {"script": "s.py", "evaluate_func": "judge", "arguments": {"k": 1}, "numbers": {"x": "higher"}},
    }


@pytest.mark.parametrize(
    ("one", "place", "hint"),
    [
        (metric("size_on_disk", {"name": "megabytes"}), "sub_types[0].name", "bytes"),
        (metric("size_on_disk", {**SIZE, "goal": {"type": "treshold", "value": 1}}), "sub_types[0].goal.type", "threshold"),
        (metric("size_on_disk", {**SIZE, "prioritty": 1}), "sub_types[0].prioritty", "priority"),
        (metric("size_on_disk", SIZE, data_confg="d"), "data_confg", "data_config"),
        (metric("size_on_disk", SIZE, data_config="dd"), "data_config", "d"),
        (metric("size_on_disk", SIZE, user_config={"dataloader_func": "f"}), "user_config.dataloader_func", "data_config"),
        (metric("custom", {"name": "x"}, user_config={"evaluate_func": "f"}), "user_config.evaluate_func", "user_script"),
        (metric("latencyy"), "type", "latency"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(one, place, hint):
    [problem] = translated(one).problems
    assert problem.place == f"evaluators.e.metrics[0].{place}"
    assert hint in problem.hint


def test_the_harness_is_a_metric():
    evaluator = {"type": "LMEvaluator", "type_args": {"tasks": ["a"], "limit": 5, "batch_size": 8, "device": "cpu"}}
    config = {"input_model": MODEL, "passes": {"press": builder()}, "evaluators": {"e": evaluator}, "evaluator": "e"}
    found = translate(config)
    assert not found.problems, [str(problem) for problem in found.problems]
    assert found.workflow["metrics"] == [{"type": "lm_eval", "parameters": {"tasks": ["a"], "limit": 5}}]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [({"tasks": [{"task": "mine"}]}, "tasks"), ({"tasks": ["a"], "limit": 1.5}, "limit")],
    ids=str,
)  # fmt: skip
def test_what_the_harness_is_not_told(arguments, place):
    config = {"evaluator": {"type": "LMEvaluator", "type_args": arguments}}
    [problem] = translate({"input_model": MODEL, "passes": {"press": builder()}, **config}).problems
    assert place in problem.place + problem.problem and problem.hint


def test_a_share_of_the_questions():
    evaluator = {"type": "LMEvaluator", "tasks": ["a"], "limit": 0.05}
    found = translate({"input_model": MODEL, "passes": {"press": builder()}, "evaluator": evaluator})
    assert found.workflow["metrics"] == [{"type": "lm_eval", "parameters": {"tasks": ["a"], "limit": 0.05}}]


@pytest.mark.parametrize(
    ("evaluator", "hint"),
    [({"type": "MTEBEvaluator", "tasks": ["x"]}, "lm_eval"), ({"type": "LMEvaluater"}, "LMEvaluator")],
    ids=str,
)
def test_other_evaluators(evaluator, hint):
    config = {"input_model": MODEL, "passes": {"press": builder()}, "evaluators": {"e": evaluator}, "evaluator": "e"}
    [problem] = translate(config).problems
    assert problem.place == "evaluators.e.type" and hint in problem.hint


def test_an_evaluator_that_is_not_there():
    [problem] = translated(metric("size_on_disk", SIZE), evaluator="ee").problems
    assert problem.place == "engine.evaluator" and "did you mean 'e'" in problem.hint
