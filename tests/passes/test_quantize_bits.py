"""``quantize``: which layers get how many bits, by name, by role and within a budget."""

from __future__ import annotations

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.models.packed.folder import read_packed
from coldpress.networks.reference import Reference
from tests.architectures import checkpoint
from tests.conftest import write_tokenizer
from tests.packed_folders import logits_of


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


@pytest.mark.full
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
