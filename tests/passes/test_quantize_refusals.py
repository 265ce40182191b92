"""``quantize``: requests and weights that cannot be, each refused with its name."""

from __future__ import annotations

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from tests.conftest import weights


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
