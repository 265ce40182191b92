"""Folders that other tools have packed: read and pressed with exactly their codes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coldpress
from coldpress.models.packed.folder import read_packed


def compress(source: Path, output: Path, **grid: Any) -> dict[str, np.ndarray]:
    """Let the package compressed-tensors pack a model, scales from the range; the values of each module."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
        fake_quantize,
    )
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    weights = QuantizationArgs(type="int", **grid)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(config_groups={"group": scheme}, ignore=["lm_head"], format="pack-quantized")
    apply_quantization_config(model, config)
    values = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight_scale"):
            weight = module.weight.data
            blocks = weight.reshape(len(weight), -1, grid.get("group_size") or weight.shape[1])
            scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), weights)
            module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
            zeros = getattr(module, "weight_zero_point", None)
            values[name] = fake_quantize(weight, module.weight_scale, zeros, weights).numpy()
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(output)
    compressor.update_config(output)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, output / name)
    return values


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "grid",
    [
        {"num_bits": 4, "strategy": "group", "group_size": 32},
        pytest.param({"num_bits": 4, "strategy": "channel"}, marks=pytest.mark.full),
        {"num_bits": 8, "strategy": "group", "group_size": 64},
        pytest.param({"num_bits": 2, "strategy": "group", "group_size": 32}, marks=pytest.mark.full),
    ],
    ids=lambda grid: f"{grid['num_bits']}-{grid['strategy']}",
)
def test_what_compressed_tensors_packs_is_pressed_as_it_is(tiny_model, tmp_path, grid, symmetric):
    values = compress(tiny_model, tmp_path / "packed", symmetric=symmetric, **grid)
    linears = read_packed(tmp_path / "packed")
    assert linears.keys() == values.keys()
    for name, linear in linears.items():
        assert linear.symmetric == symmetric
        np.testing.assert_array_equal(linear.dequantized(0, linear.rows), values[name])
    pressed = coldpress.optimize(tmp_path / "packed", tmp_path / "onnx", no_verify=True, cache_dir=tmp_path / "cache")
    stored = [layer for layer in pressed.data["layers"] if layer["algorithm"] == "as stored"]
    assert len(stored) == 8
    assert all(layer["exact"] for layer in stored)
