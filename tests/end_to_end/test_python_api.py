"""The Python API: the same names and defaults as the flags."""

from __future__ import annotations

import importlib
import inspect
import json

import pytest

import coldpress
import coldpress.api
from coldpress.cli.options import Choice


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_optimize_gives_a_report_and_a_model(tiny_model, tmp_path):
    report = coldpress.optimize(tiny_model, tmp_path / "out", algorithm="rtn", no_verify=True)
    assert report.exit_code == 0
    assert report.data["verdict"] == "unverified"
    assert (tmp_path / "out/model.onnx").exists()
    assert json.loads((tmp_path / "out/report.json").read_text())["layers"]
    assert {layer["algorithm"] for layer in report.data["layers"]} == {"rtn"}


def test_a_plain_workflow_runs(tiny_model, tmp_path):
    workflow = {
        "model": str(tiny_model),
        "output": str(tmp_path / "out"),
        "passes": [{"type": "press", "parameters": {"precision": "int8"}}],
        "verify": {"tolerance": "kl=1,ppl=2,top1=0,generation=0"},
        "metrics": ["size"],
    }
    report = coldpress.run(workflow)
    assert report.data["verdict"] == "verified"
    assert {layer["bits"] for layer in report.data["layers"]} == {8}


def test_a_wrong_option_is_refused_with_the_closest(tiny_model):
    with pytest.raises(coldpress.ColdpressError) as caught:
        coldpress.optimize(tiny_model, blocksize=32)
    assert "block_size" in caught.value.hint


def test_plan_and_run_pass_and_evaluate(tiny_model, tmp_path):
    assert coldpress.plan(tiny_model, precision="int8")["output_bytes"] > 0
    report = coldpress.run_pass("press", tiny_model, tmp_path / "out", precision="fp32")
    assert report.data["layers"] == []
    rows = coldpress.evaluate(tmp_path / "out", tiny_model, metrics=("size", "perplexity"))
    assert rows[0]["perplexity"]["perplexity"] == pytest.approx(rows[1]["perplexity"]["perplexity"], rel=1e-4)


def test_a_report_prints_as_the_table_and_a_model_is_compared_timed_and_asked(tiny_model, tmp_path):
    report = coldpress.optimize(tiny_model, tmp_path / "out", precision="int8", no_verify=True)
    lines = str(report).splitlines()
    assert lines[0].startswith(str(tiny_model)[:20]) and "source" in lines[0] and "model" in lines[0]
    assert any(line.startswith("Bits per weight") for line in lines) and lines[-1].startswith("Not verified")

    loose = "kl=5,ppl=10,top1=0,generation=0"
    verdict = coldpress.verify(tmp_path / "out", tolerance=loose)
    assert verdict.verdict == "verified" == str(verdict) and verdict.numbers["kl"] > 0
    assert coldpress.verify(tmp_path / "out", tiny_model, tolerance="kl=0.0000001").verdict == "worse than tolerance"

    [row] = coldpress.benchmark(tmp_path / "out", rounds=1, prompt_tokens=16, new_tokens=4)
    assert row["decode_tokens_per_second"]["value"] > 0

    talk = coldpress.chat(tmp_path / "out", greedy=True, max_new_tokens=4)
    pieces = list(talk.ask("hello"))
    assert 1 <= len(pieces) <= 4 and len(talk.last.stream.tokens) == len(pieces)


def test_zero_and_false_are_no_defaults(tiny_model, tmp_path):
    with pytest.raises(coldpress.ColdpressError, match="head_bits: 0 is not a choice"):
        coldpress.optimize(tiny_model, tmp_path / "out", head_bits=0)
    report = coldpress.optimize(tiny_model, tmp_path / "out", algorithm="rtn", symmetric=False, no_verify=True)
    assert not any(layer["symmetric"] for layer in report.data["layers"])


#: what only a terminal needs
OF_THE_TERMINAL = {"as_json", "log_level", "debug", "dry_run"}
#: what is said with a call, and is no part of the request
OF_THE_RUN = {"model", "overwrite", "cache_dir"}
#: a value other than the default, where the flag's type does not tell one
VALUES = {
    "model_name_or_path": "some/model",
    "device": "cpu",
    "provider": "CPUExecutionProvider",
    "tolerance": "kl=1",
    "data_files": ("rows.jsonl",),
    "data": {"type": "calibration_text", "parameters": {"max_samples": 8}},
    "data_name": "json",
    "text_template": "{a}",
    "rotation": "quarot",
    "search": {"temperature": 0.5},
    "filename": "text.onnx",
}


@pytest.mark.parametrize(
    ("verb", "function", "build"),
    [
        ("auto_opt", coldpress.optimize, coldpress.api.optimize_workflow),
        ("quantize", coldpress.quantize, coldpress.api.quantize_workflow),
    ],
)
def test_flags_and_arguments_have_the_same_names_and_defaults(verb, function, build):
    command = importlib.import_module(f"coldpress.cli.{verb}").command
    named = {**inspect.signature(build).parameters, **inspect.signature(function).parameters}
    flags = {flag.name: flag for flag in command.params if flag.name not in OF_THE_TERMINAL}
    assert set(flags) - {"model"} == set(inspect.signature(function).parameters) - {"others"}
    for name, flag in flags.items():
        if name not in inspect.signature(build).parameters and name not in OF_THE_RUN:
            more = {"model_script": "net.py"} if name == "script_dir" else {}
            build("some/model", **more, **{"algorithm": "gptq", name: VALUES.get(name) or _some_value(flag)})
        if isinstance(flag.default, str | int):
            assert flag.default == named[name].default, name
        elif name not in ("model", "model_name_or_path"):
            assert named[name].default in (None, False, ()), name
    with pytest.raises(coldpress.ColdpressError, match="there is no 'no_such_flag'"):
        build("some/model", no_such_flag=1)


def _some_value(flag):
    """A value that the flag's type allows."""
    if flag.is_flag:
        return True
    if isinstance(flag.type, Choice):
        return next(value for value in flag.type.values.values() if value not in ("quarot", "spinquant"))
    if flag.multiple:
        return ("*.v_proj=int8",) if flag.name == "overrides" else ("*.v_proj",)
    return {"integer": 64, "integer range": 1, "float": 4.5, "text": "90MB"}[flag.type.name]
