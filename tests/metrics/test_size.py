"""Size counts the weights of the source, however they are packed."""

from __future__ import annotations

import pytest

from coldpress.metrics.size import Size
from coldpress.networks.reference import Reference


def parameters(folder) -> int:
    return sum(parameter.numel() for parameter in Reference(folder)._model.parameters())


def test_hugging_face_folder(tiny_source, context):
    numbers = Size().measure(tiny_source, context)
    assert numbers["weights"] == parameters(tiny_source.path)
    assert numbers["bits_per_weight"] == 32
    assert numbers["total_bytes"] > numbers["model_bytes"]


@pytest.mark.parametrize(("precision", "lowest", "highest"), [("fp32", 32, 32), ("int8", 8, 12), ("int4", 4, 9)])
def test_onnx_models_stand_for_the_same_weights(precision, lowest, highest, pressed, tiny_source, context):
    numbers = Size().measure(pressed(precision), context)
    assert numbers["weights"] == parameters(tiny_source.path)
    assert lowest <= numbers["bits_per_weight"] <= highest
    folder = pressed(precision).path
    assert numbers["model_bytes"] == sum((folder / f).stat().st_size for f in ("model.onnx", "model.onnx.data"))
