"""A checkpoint of compressed-tensors with layers in two formats, words of 4 bits and int8 with scales, is read as
transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.models.model import Model
from coldpress.models.packed.spans import plain_tensors, tensors_to_press
from coldpress.networks.reference import Reference
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.quant.grid import Grid
from tests.packed_folders import pack_folder, transformers_logits

WINDOW = np.arange(5, 25)
ROWS, COLUMNS = 64, 128


def scheme(strategy: str, symmetric: bool) -> dict[str, Any]:
    size = 32 if strategy == "group" else None
    return {
        "num_bits": 8,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": size,
        "dynamic": False,
    }


def add_integers(folder: Path, strategy: str, symmetric: bool) -> np.ndarray:
    """Make every down_proj of a packed folder int8 with scales; gives the values of the first."""
    random = np.random.default_rng(0)
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors = load_file(file)
    shape = {"tensor": (1,), "channel": (ROWS, 1), "group": (ROWS, COLUMNS // 32)}[strategy]
    for layer in range(2):
        module = f"model.layers.{layer}.mlp.down_proj"
        for name in [name for name in tensors if name.startswith(module)]:
            del tensors[name]
        codes = random.integers(-128, 128, (ROWS, COLUMNS)).astype(np.int8)
        scales = random.uniform(5e-4, 2e-3, shape).astype(np.float32)
        zeros = random.integers(-20, 20, shape).astype(np.int8)
        tensors |= {f"{module}.weight": codes, f"{module}.weight_scale": scales}
        if not symmetric:
            tensors[f"{module}.weight_zero_point"] = zeros
        spread = [
            np.repeat(
                np.broadcast_to(part, (ROWS, part.size if part.ndim == 1 else shape[1])), COLUMNS // part.shape[-1], 1
            )
            for part in (scales, zeros)
        ]
        if layer == 0:
            values = (codes.astype(np.float32) - (0 if symmetric else spread[1])) * spread[0]
    save_file(tensors, file, metadata={"format": "pt"})
    quantized = config["quantization_config"]
    [packed] = quantized["config_groups"].values()
    packed |= {"targets": ["re:.*(q|k|v|o|gate|up)_proj$"], "format": "pack-quantized"}
    integers = {"targets": ["re:.*down_proj$"], "format": "int-quantized", "weights": scheme(strategy, symmetric)}
    groups = {"group_0": packed, "group_1": {**integers, "input_activations": None, "output_activations": None}}
    config["quantization_config"] = {**quantized, "format": "mixed-precision", "config_groups": groups}
    (folder / "config.json").write_text(json.dumps(config))
    return values.astype(np.float32)


@pytest.mark.parametrize(("strategy", "symmetric"), [("channel", True), ("tensor", True), ("group", False)])
def test_layers_in_two_formats_are_read(tiny_model: Path, tmp_path: Path, strategy: str, symmetric: bool):
    folder = pack_folder(tiny_model, tmp_path, "compressed-tensors", lambda _: Grid(4, 32, True)).folder
    values = add_integers(folder, strategy, symmetric)
    tensors = plain_tensors(folder)
    np.testing.assert_allclose(tensors["model.layers.0.mlp.down_proj.weight"].view(), values, rtol=1e-6)
    assert not [name for name in tensors if "scale" in name or "zero_point" in name]
    expected = transformers_logits(folder, WINDOW)
    np.testing.assert_allclose(next(Reference(folder).logits([WINDOW])), expected, atol=1e-4)


def test_they_are_pressed_with_their_codes(tiny_model: Path, tmp_path: Path):
    folder = pack_folder(tiny_model, tmp_path, "compressed-tensors", lambda _: Grid(4, 32, True)).folder
    add_integers(folder, "channel", True)
    expected = transformers_logits(folder, WINDOW)
    (tmp_path / "out").mkdir()
    exact = Press(accuracy_level=0, head_bits=16, embedding_bits=16, scale_dtype="float32", logits="all")
    pressed = exact.run(Model(folder, "hf", "x"), Context(tmp_path / "out"))
    layers = {layer.name: layer for layer in pressed.provenance.layers}
    assert layers["model.layers.1.mlp.down_proj"].bits == 8
    assert layers["model.layers.1.mlp.down_proj"].algorithm == "as stored"
    np.testing.assert_allclose(Decoder(pressed.path).logits(WINDOW), expected, atol=1e-4)


def test_quantized_inputs_are_named_as_left_out(tiny_model: Path, tmp_path: Path):
    folder = pack_folder(tiny_model, tmp_path, "compressed-tensors", lambda _: Grid(4, 32, True)).folder
    add_integers(folder, "channel", True)
    config = json.loads((folder / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_1"]
    group["input_activations"] = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert ["quantized inputs" in remark for remark in tensors_to_press(folder)[1]] == [True]


def test_integers_without_scales_are_refused(tiny_model: Path, tmp_path: Path):
    folder = pack_folder(tiny_model, tmp_path, "compressed-tensors", lambda _: Grid(4, 32, True)).folder
    add_integers(folder, "channel", True)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight_scale"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ColdpressError, match=r"layers\.1\.mlp\.down_proj\.weight' is int8 .* no weight_scale"):
        plain_tensors(folder)
