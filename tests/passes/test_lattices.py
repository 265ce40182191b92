"""Checkpoints that had been quantized before: what the format holds comes out as it is, and of the rest the distance is
told."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from safetensors.numpy import load_file

import coldpress
from coldpress.networks.layerwise import Layerwise
from tests.conftest import weights


def on_the_grid_of(kind: GGMLQuantizationType):
    """The weights of a tiny model whose layers have the values that the package gguf gives for a format."""
    return {
        name: quants.dequantize(quants.quantize(values.astype(np.float32), kind), kind)
        if name.endswith("proj.weight")
        else values
        for name, values in weights().items()
    }


@pytest.fixture
def never_calibrated(monkeypatch):
    def run(*_, **__):
        raise AssertionError("the network ran")

    monkeypatch.setattr(Layerwise, "run", run)


def layers_of(report):
    return [layer for layer in report.data["layers"] if layer["role"] == "linear"]


@pytest.mark.parametrize(("algorithm", "symmetric"), [(None, None), ("rtn", None), ("best", True)])
def test_codes_are_kept_whatever_the_algorithm(algorithm, symmetric, make_model, tmp_path, never_calibrated):
    folder = make_model(tensors=on_the_grid_of(GGMLQuantizationType.Q4_0))
    report = coldpress.optimize(
        folder, tmp_path / "out", algorithm=algorithm, symmetric=symmetric, no_verify=True, cache_dir=tmp_path / "cache"
    )
    assert all(layer["exact"] for layer in layers_of(report))
    assert any("were on a grid already, and keep their codes" in note for note in report.data["source"]["notes"])


def test_a_quantized_folder_has_the_values_of_its_source(make_model, quantize, tmp_path, never_calibrated):
    tensors = on_the_grid_of(GGMLQuantizationType.Q4_0)
    folder = make_model(tensors=tensors)
    quantize(folder, algorithm="awq", group_size=32, no_verify=True)
    from coldpress.models.packed.folder import read_packed

    for name, linear in read_packed(tmp_path / "quantized").items():
        np.testing.assert_array_equal(linear.dequantized(0, linear.rows), tensors[f"{name}.weight"])
    kept = load_file(tmp_path / "quantized" / "model.safetensors")["model.layers.0.input_layernorm.weight"]
    np.testing.assert_array_equal(kept, tensors["model.layers.0.input_layernorm.weight"])


def test_layers_beside_those_on_a_grid_are_calibrated_and_scale_nothing(make_model, quantize, tmp_path):
    tensors = weights()
    grid = on_the_grid_of(GGMLQuantizationType.Q4_0)
    tensors |= {name: values for name, values in grid.items() if "down_proj" in name or "q_proj" in name}
    report = quantize(make_model(tensors=tensors), algorithm="best", group_size=32, no_verify=True)
    notes = {layer["name"]: layer for layer in report.data["calibration"]["layers"]}
    for name, note in notes.items():
        on_grid = "down_proj" in name or "q_proj" in name
        assert note["exact"] == on_grid
        # a scaling of what q reads would be one of q
        assert note["alpha"] is None or not (on_grid or name.endswith(("k_proj", "v_proj")))


def test_float_minima_are_told_with_their_distance(make_model, tmp_path):
    folder = make_model(tensors=on_the_grid_of(GGMLQuantizationType.Q4_1))
    report = coldpress.optimize(folder, tmp_path / "out", algorithm="kquant", no_verify=True, cache_dir=tmp_path / "c")
    assert not any(layer["exact"] for layer in layers_of(report))
    [note] = [note for note in report.data["source"]["notes"] if "above a float minimum" in note]
    assert "4 bits in blocks of 32" in note
    assert 0.1 < float(note.split("theirs are ")[1].split(" ")[0]) < 0.4


def test_what_would_keep_the_codes_is_told(make_model, tmp_path):
    folder = make_model(tensors=on_the_grid_of(GGMLQuantizationType.Q8_0))
    report = coldpress.optimize(folder, tmp_path / "out", algorithm="kquant", no_verify=True, cache_dir=tmp_path / "c")
    assert any("8 bits would keep them" in note for note in report.data["source"]["notes"])


def test_a_rotation_does_not_take_weights_off_their_grid(make_model, tmp_path, never_calibrated):
    folder = make_model(tensors=on_the_grid_of(GGMLQuantizationType.Q4_0))
    options = {"rotation": "quarot", "no_verify": True, "cache_dir": tmp_path / "cache"}
    report = coldpress.optimize(folder, tmp_path / "out", **options)
    assert all(layer["exact"] for layer in layers_of(report))
    assert any(note.startswith("Not rotated") for note in report.data["source"]["notes"])
