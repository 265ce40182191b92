"""A layer with wrong weights is named, by the name it has in the source."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from coldpress.metrics.worst_layer import WorstLayer, layer_errors, worst_layer
from coldpress.networks.reference import Reference
from coldpress.networks.shards import Shards

WINDOW = np.arange(20, 60)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_every_layer_is_compared(precision, pressed, tiny_source):
    errors = layer_errors(pressed(precision).path, Reference(tiny_source.path), WINDOW, 2)
    assert len(errors) == 9  # four products in each of two layers, and the head
    assert max(errors.values()) < (1e-5 if precision == "fp32" else 0.5)


@pytest.mark.parametrize("module", ["model.layers.1.mlp.gate_up_proj", "model.layers.0.self_attn.o_proj"])
def test_the_spoiled_layer_is_named(module, pressed, tiny_source, tmp_path):
    import onnx

    folder = tmp_path / "spoiled"
    shutil.copytree(pressed("int4").path, folder)
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    (codes,) = [t for t in graph.initializer if t.name.startswith(f"{module}.weight") and len(t.dims) == 3]
    place = {entry.key: entry.value for entry in codes.external_data}
    start, length = int(place["offset"]), int(place["length"])
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[start : start + length] = data[start : start + length][::-1]
    (folder / "model.onnx.data").write_bytes(data)
    name, error = worst_layer(folder, Reference(tiny_source.path), WINDOW, 2)
    assert name == module
    assert error > 0.5


def test_layers_are_compared_with_what_transformers_loads_and_what_is_misread_is_named(
    pressed, tiny_source, context, monkeypatch
):
    read, wrong = Shards.tensor, "model.layers.1.mlp.down_proj.weight"
    monkeypatch.setattr(Shards, "tensor", lambda self, name: read(self, name) * (2 if name == wrong else 1))
    found = WorstLayer().measure(pressed("fp32"), context)
    assert found["relative_error"] < 1e-5 and found["misread"] == [wrong]
