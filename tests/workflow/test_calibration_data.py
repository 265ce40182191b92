"""What to calibrate on: a few options on the command line, a source of data everywhere else."""

from __future__ import annotations

import pytest

from coldpress.api import optimize_workflow, pass_workflow, quantize_workflow
from coldpress.errors import ColdpressError
from coldpress.workflow.file import load_workflow

OPTIONS = {
    "data_name": "json",
    "data_files": ("rows.jsonl",),
    "text_template": "{question}",
    "use_chat_template": True,
    "max_seq_len": 64,
    "num_samples": 6,
}
SOURCE = {
    "type": "calibration_text",
    "parameters": {
        "data_name": "json",
        "data_files": ["rows.jsonl"],
        "text_template": "{question}",
        "chat_template": True,
        "max_seq_len": 64,
        "max_samples": 6,
    },
}


def data_of(workflow):
    return [step.parameters.get("data") for step in workflow.passes]


def test_every_verb_makes_a_source_of_its_options():
    assert data_of(quantize_workflow("m", **OPTIONS)) == [SOURCE]
    assert data_of(quantize_workflow("m", rotation="spinquant", algorithm="rtn", **OPTIONS)) == [SOURCE, None]
    assert data_of(optimize_workflow("m", **OPTIONS)) == [SOURCE, None]
    for name in ("quantize", "quantize_onnx", "QuantizeOnnx", "rotate"):
        assert data_of(pass_workflow(name, "m", **OPTIONS)) == [SOURCE]


def test_without_any_it_is_the_shipped_text():
    assert data_of(quantize_workflow("m")) == [None]
    [data, _] = data_of(optimize_workflow("m"))
    assert data == {"type": "calibration_text", "parameters": {"max_samples": None}}


def test_a_source_in_full_is_taken_as_it_is():
    assert data_of(quantize_workflow("m", data=SOURCE)) == [SOURCE]
    assert data_of(optimize_workflow("m", data=SOURCE)) == [SOURCE, None]
    with pytest.raises(ColdpressError, match="max_seq_len has no effect beside data"):
        quantize_workflow("m", data=SOURCE, max_seq_len=64)


def test_arrays_are_data_of_their_own_kind():
    [data] = data_of(quantize_workflow("m.onnx", data_files=("inputs.npz",), num_samples=3))
    assert data == {"type": "arrays", "parameters": {"file": "inputs.npz", "max_samples": 3}}
    with pytest.raises(ColdpressError, match="max_seq_len has no effect on arrays"):
        quantize_workflow("m.onnx", data_files=("inputs.npz",), max_seq_len=3)
    with pytest.raises(ColdpressError, match="cannot be joined"):
        quantize_workflow("m.onnx", data_files=("inputs.npz", "text.txt"))


def test_files_of_before_are_read():
    old = {**OPTIONS, "data_files": ["rows.jsonl"], "algorithm": "gptq"}
    for name in ("quantize", "Quantize"):
        found = load_workflow({"model": "m", "passes": [{"type": name, "parameters": old}]})
        assert found.passes[0].parameters == {"algorithm": "gptq", "data": SOURCE}
    again = load_workflow({"model": "m", "passes": [{"any_of": [{"type": "quantize", "parameters": old}, "press"]}]})
    assert again.passes[0].any_of[0].parameters["data"] == SOURCE


def test_a_choice_in_a_file_of_before_is_one_among_sources():
    old = {"num_samples": {"choice": [4, 8]}, "max_seq_len": {"choice": [32, 64]}}
    found = load_workflow({"model": "m", "passes": [{"type": "quantize", "parameters": old}]})
    sources = found.passes[0].parameters["data"]["choice"]
    sizes = [(one["parameters"]["max_samples"], one["parameters"]["max_seq_len"]) for one in sources]
    assert sizes == [(4, 32), (8, 32), (4, 64), (8, 64)]
    ranged = {"num_samples": {"range": [4, 8]}}
    with pytest.raises(ColdpressError, match="num_samples of a calibration is open as a choice only"):
        load_workflow({"model": "m", "passes": [{"type": "quantize", "parameters": ranged}]})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "calibration_texts"}, "unknown kind of data 'calibration_texts'"),
        (
            {"type": "calibration_text", "parameters": {"max_sample": 4}},
            r"data\.parameters.*there is no 'max_sample' here",
        ),
        ({"type": "calibration_text", "parameters": {"max_samples": 0}}, "max_samples is 0"),
        ({"type": "calibration_text", "parameters": {"text_template": "{a}"}}, "text_template is for data of your own"),
    ],
)
def test_a_wrong_source_is_refused_where_it_stands(data, message):
    with pytest.raises(ColdpressError, match=message):
        load_workflow({"model": "m", "passes": [{"type": "quantize", "parameters": {"data": data}}]})
