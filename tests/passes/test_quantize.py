"""``quantize``: from a float folder to one that transformers loads, that is pressed bit by bit, and that was measured."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.networks.packed import read_packed
from coldpress.networks.reference import Reference
from tests.architectures import checkpoint
from tests.conftest import weights, write_tokenizer


def logits_of(folder: Path, ids: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.as_tensor(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("precision", ["int2", "int3", "int4", "int8"])
def test_plain_transformers_loads_the_folder(precision, symmetric, tiny_model, quantize, tmp_path):
    report = quantize(tiny_model, algorithm="gptq", precision=precision, symmetric=symmetric)
    ids = np.arange(5, 30)
    [expected] = Reference(tmp_path / "quantized").logits([ids])
    np.testing.assert_allclose(logits_of(tmp_path / "quantized", ids), expected, atol=1e-4)
    assert report.data["quality"]["kl"] < {"int2": 3, "int3": 0.5}.get(precision, 0.1)
    assert len(read_packed(tmp_path / "quantized")) == 14


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq"])
def test_the_codes_are_pressed_as_they_are(form, tiny_model, quantize, tmp_path):
    quantize(tiny_model, algorithm="kquant", format=form)
    pressed = coldpress.optimize(tmp_path / "quantized", tmp_path / "onnx", cache_dir=tmp_path / "cache", head_bits=16)
    stored = [layer for layer in pressed.data["layers"] if layer["algorithm"] == "as stored"]
    assert stored
    assert all(layer["exact"] for layer in stored)
    assert pressed.data["verdict"] == "verified"


def test_better_algorithms_lose_less(tiny_model, quantize):
    error = {}
    for algorithm in ("rtn", "kquant", "hqq", "awq", "gptq", "autoround", "best"):
        report = quantize(tiny_model, algorithm, algorithm=algorithm, precision="int3")
        layers = report.data["calibration"]["layers"]
        assert len(layers) == 14
        error[algorithm] = None if algorithm in ("rtn", "hqq") else np.mean([layer["output_error"] for layer in layers])
        if error[algorithm] is not None:
            plain = np.mean([layer["rtn_output_error"] for layer in layers])
            assert error[algorithm] < plain
    assert error["best"] < error["gptq"] < error["kquant"]


def test_a_second_algorithm_does_not_run_the_model_again(tiny_model, quantize, tmp_path, monkeypatch):
    quantize(tiny_model, "first", algorithm="gptq")
    from coldpress.networks import layerwise

    def never(*args, **kwargs):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(layerwise.Layerwise, "run", never)
    quantize(tiny_model, "second", algorithm="awq")


def test_other_data_is_other_work(tiny_model, quantize, tmp_path, text):
    first = quantize(tiny_model, "first", algorithm="gptq").data["calibration"]["digest"]
    changed = tmp_path / "own.jsonl"
    changed.write_text("\n".join(json.dumps({"q": f"{n} plus {n}", "a": str(2 * n)}) for n in range(400)))
    options = {"algorithm": "gptq", "data_files": (str(changed),), "text_template": "{q} is {a}"}
    second = quantize(tiny_model, "second", **options).data["calibration"]["digest"]
    changed.write_text("\n".join(json.dumps({"q": f"{n} minus {n}", "a": "0"}) for n in range(400)))
    third = quantize(tiny_model, "third", **options).data["calibration"]["digest"]
    assert len({first, second, third}) == 3


def test_embedding_and_head_of_a_tied_model(tiny_model, quantize, tmp_path):
    quantize(tiny_model, algorithm="gptq", embeddings=True)
    pressed = coldpress.optimize(tmp_path / "quantized", tmp_path / "onnx", cache_dir=tmp_path / "cache")
    assert all(layer["exact"] for layer in pressed.data["layers"])
    assert {layer["role"] for layer in pressed.data["layers"]} >= {"head"}
    with pytest.raises(ColdpressError, match="head is its token embedding") as error:
        quantize(tiny_model, "other", algorithm="gptq", lm_head=True)
    assert "--embeddings" in str(error.value.hint)


def test_an_untied_head(quantize, tmp_path):
    folder = checkpoint("llama", tmp_path / "model").folder
    write_tokenizer(folder)
    quantize(folder, algorithm="gptq", lm_head=True)
    assert "lm_head" in read_packed(tmp_path / "quantized")
    ids = np.arange(5, 30)
    [expected] = Reference(tmp_path / "quantized").logits([ids])
    np.testing.assert_allclose(logits_of(tmp_path / "quantized", ids), expected, atol=1e-4)


def test_a_budget_spreads_the_bits(tiny_model, quantize, tmp_path):
    quantize(tiny_model, algorithm="gptq", target_bits=6.0, symmetric=True)
    linears = read_packed(tmp_path / "quantized")
    bits = {name: linear.bits for name, linear in linears.items()}
    assert len(set(bits.values())) > 1
    for layer in range(2):
        assert len({bits[f"model.layers.{layer}.self_attn.{part}_proj"] for part in "qkv"}) == 1
        assert len({bits[f"model.layers.{layer}.mlp.{part}_proj"] for part in ("gate", "up")}) == 1
    stored = sum(linear.rows * linear.columns * (linear.bits + 1) for linear in linears.values()) / 8
    assert stored <= sum(linear.rows * linear.columns for linear in linears.values()) * 6.6 / 8
    ids = np.arange(5, 30)
    [expected] = Reference(tmp_path / "quantized").logits([ids])
    np.testing.assert_allclose(logits_of(tmp_path / "quantized", ids), expected, atol=1e-4)


def test_a_budget_in_bytes_holds_for_the_pressed_model(tiny_model, quantize, tmp_path):
    quantize(tiny_model, algorithm="gptq", max_size="1200KB")
    pressed = coldpress.optimize(tmp_path / "quantized", tmp_path / "onnx", cache_dir=tmp_path / "cache")
    assert pressed.data["size"]["model_bytes"] <= 1_200_000
    with pytest.raises(ColdpressError, match="do not fit into"):
        quantize(tiny_model, "small", algorithm="gptq", max_size="60KB")


def test_modules_of_their_own(tiny_model, quantize, tmp_path):
    quantize(
        tiny_model,
        algorithm="gptq",
        overrides=("*.v_proj=int8", "*.1.mlp.*=int2"),
        modules_to_not_convert=("*.0.self_attn.o_proj",),
    )
    bits = {name: linear.bits for name, linear in read_packed(tmp_path / "quantized").items()}
    assert "model.layers.0.self_attn.o_proj" not in bits
    assert bits["model.layers.0.self_attn.v_proj"] == 8
    assert bits["model.layers.1.mlp.up_proj"] == 2
    assert bits["model.layers.0.mlp.up_proj"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 128}, "has 64 inputs, which groups of 128 do not divide"),
        ({"data_files": ("missing.jsonl",)}, r"missing\.jsonl"),
        ({"overrides": ("*.v_proj=int5",)}, "is not GLOB=PRECISION"),
        ({"modules_to_not_convert": ("*.nothing",)}, "matches no linear layer"),
        ({"format": "awq", "precision": "int8"}, "holds 4 bits"),
        ({"max_memory": 0.001}, "too little for one layer"),
        ({"target_bits": 4.5, "max_size": "90MB"}, "two budgets"),
        ({"target_bits": 40.0}, "target_bits is 40"),
        ({"target_bits": 2.1}, "target_bits is 2.1; the weights do not fit"),
        ({"target_bits": 4.5, "precision": "int8"}, "precision int8 has no effect with a budget"),
        ({"max_size": "big"}, "is not a size"),
        ({"device": "npu"}, "not on an npu"),
        ({"algorithm": "awq", "polish_seconds": 1.0}, "polish_seconds has no effect"),
        ({"max_seq_len": 4096}, "2048|max_seq_len|context"),
    ],
)
def test_wrong_requests_say_what_is_wrong(options, message, tiny_model, quantize):
    with pytest.raises(ColdpressError, match=message):
        quantize(tiny_model, **{"algorithm": "gptq", **options})


@pytest.mark.parametrize("option", [{"data_files": ("rows.jsonl",)}, {"num_samples": 6}, {"max_memory": 3.0}])
def test_options_of_a_calibration_are_refused_without_one(option, tiny_model, tmp_path):
    with pytest.raises(ColdpressError, match=f"{next(iter(option))} has no effect with rtn"):
        coldpress.quantize(tiny_model, tmp_path / "out", algorithm="rtn", **option)


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU here")
def test_without_a_gpu_only_graphs_are_made_for_one(tiny_model, quantize, tmp_path, text):
    with pytest.raises(ColdpressError, match="finds no CUDA device here"):
        quantize(tiny_model, algorithm="gptq", device="gpu")
    options = {"data_files": (str(text),), "max_seq_len": 32, "num_samples": 6, "cache_dir": tmp_path / "cache"}
    pressed = coldpress.optimize(tiny_model, tmp_path / "out", algorithm="gptq", device="gpu", **options)
    assert {layer["symmetric"] for layer in pressed.data["layers"] if layer["role"] == "linear"} == {True}


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_a_weight_that_is_no_number_is_named(algorithm, make_model, quantize):
    tensors = weights()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    with pytest.raises(ColdpressError, match=r"model\.layers\.1\.mlp\.up_proj: .* not finite"):
        quantize(make_model(tensors=tensors), algorithm=algorithm)


def test_inputs_that_are_no_numbers_are_named(make_model, quantize):
    tensors = weights()
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1e15
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e15
    tensors["model.layers.0.mlp.gate_proj.weight"] *= 1e15
    with pytest.raises(ColdpressError, match=r"inputs of model\.layers\.0\.mlp\.down_proj are not finite") as error:
        quantize(make_model(tensors=tensors), algorithm="gptq")
    assert error.value.exit_code == 1


def test_a_folder_that_lost_too_much_names_its_worst_layer(tiny_model, tmp_path):
    report = coldpress.quantize(
        tiny_model, tmp_path / "out", algorithm="rtn", precision="int2", cache_dir=tmp_path / "cache"
    )
    assert report.exit_code == 3
    assert "the worst layer is model.layers." in report.data["reasons"][-1]


def test_a_quantized_folder_is_not_quantized_again(tiny_model, quantize, tmp_path):
    quantize(tiny_model, algorithm="kquant")
    with pytest.raises(ColdpressError, match="is quantized already"):
        quantize(tmp_path / "quantized", "again", algorithm="kquant")


def test_rows_of_zeros_and_dead_inputs(make_model, quantize, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = make_model()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3:9] = 0
    tensors["model.layers.1.self_attn.v_proj.weight"][:] = 0
    tensors["model.layers.1.self_attn.q_proj.weight"][5] = 0.25
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    layers = {layer["name"]: layer for layer in quantize(folder, algorithm="best").data["calibration"]["layers"]}
    assert layers["model.layers.1.self_attn.v_proj"]["output_error"] == 0
    assert "zero" in layers["model.layers.1.self_attn.o_proj"]["fallback"]


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_bytes(tiny_model, tmp_path, text):
    """kill -9 at moments that chance picks, again and again, until a run gets through."""
    options = ["--algorithm", "best", "--data_files", str(text), "--max_seq_len", "32", "--num_samples", "6"]
    common = ["--group_size", "16", "--no_verify", "--threads", "1"]

    def command(name: str) -> list[str]:
        paths = ["-m", str(tiny_model), "-o", str(tmp_path / name), "--cache_dir", str(tmp_path / f"{name}-cache")]
        return [sys.executable, "-m", "coldpress", "quantize", *paths, *options, *common]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True, env=environment)
    whole_s, chance, kills = time.monotonic() - started, random.Random(3), 0
    while True:
        run = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            assert run.wait(whole_s * chance.uniform(0.5, 0.95) if kills < 4 else None) == 0
            break
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
    assert kills
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_auto_opt_calibrates_and_presses_at_once(tiny_model, tmp_path, text):
    options = {"data_files": (str(text),), "max_seq_len": 32, "num_samples": 6, "cache_dir": tmp_path / "cache"}
    report = coldpress.optimize(tiny_model, tmp_path / "out", algorithm="gptq", **options).data
    assert [step["name"] for step in report["passes"]] == ["quantize", "press"]
    assert report["calibration"]["tokens"] == 6 * 32
    # compared with the float source, not with what was rounded
    assert 1e-4 < report["quality"]["kl"] < 0.1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Calibration" in page
    assert "model.layers.1.mlp.down_proj" in page
    with pytest.raises(ColdpressError, match="data_files has no effect with --algorithm kquant"):
        coldpress.optimize(tiny_model, tmp_path / "other", data_files=(str(text),))


def test_the_package_onnx_loads_what_is_pressed(tiny_model, tmp_path):
    import onnx

    coldpress.optimize(tiny_model, tmp_path / "out", cache_dir=tmp_path / "cache", no_verify=True)
    assert onnx.load(tmp_path / "out" / "model.onnx").graph.initializer


def test_the_card_of_a_folder_says_how_to_load_it(tiny_model, quantize, tmp_path):
    quantize(tiny_model, algorithm="kquant")
    card = (tmp_path / "quantized" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert "library_name: transformers" in card
    assert "coldpress auto-opt -m ." in card
    assert "register" not in card
    quantize(tiny_model, "mixed", algorithm="kquant", overrides=("*.v_proj=int8",))
    mixed = (tmp_path / "mixed" / "README.md").read_text()
    assert "register()" in mixed
    assert "pip install transformers compressed-tensors coldpress" in mixed
    quantize(tiny_model, "gptq", algorithm="kquant", format="gptq")
    assert "pip install transformers optimum gptqmodel" in (tmp_path / "gptq" / "README.md").read_text()


def test_an_onnx_model_stays_one(tiny_model, tmp_path):
    options = {"cache_dir": tmp_path / "cache", "no_verify": True}
    coldpress.optimize(tiny_model, tmp_path / "float", precision="fp32", logits="all", **options)
    report = coldpress.quantize(
        tmp_path / "float", tmp_path / "int4", algorithm="kquant", group_size=32, **options
    ).data
    assert [step["name"] for step in report["passes"]] == ["quantize_onnx"]
    assert {layer["bits"] for layer in report["layers"]} >= {4}
    assert (tmp_path / "int4" / "genai_config.json").exists()
    with pytest.raises(ColdpressError, match="max_size has no effect on an ONNX model"):
        coldpress.quantize(tmp_path / "float", tmp_path / "other", max_size="1MB", **options)
