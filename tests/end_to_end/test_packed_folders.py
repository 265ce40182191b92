"""A quantized folder goes through the whole of auto-opt and is verified against itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import coldpress
from coldpress.metrics.worst_layer import layer_errors
from coldpress.networks.reference import Reference
from coldpress.quant.grid import Grid
from tests.packed_folders import FORMATS, pack_folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "compressed-tensors" else pytest.mark.full) for kind in FORMATS]
)
def test_a_quantized_folder_is_verified_against_itself(tiny_model: Path, tmp_path: Path, kind: str):
    packed = pack_folder(tiny_model, tmp_path, kind, lambda _: Grid(4, 32, False))
    exact = {"head_bits": 16, "embedding_bits": 16, "accuracy_level": 0}
    report = coldpress.optimize(packed.folder, tmp_path / "out", **exact)
    assert report.data["verdict"] == "verified"
    assert report.data["quality"]["kl"] < 1e-6
    by = "transformers" if kind == "compressed-tensors" else "coldpress"  # which has no package for the others here
    assert report.data["quality"]["reference"]["by"] == by
    assert all(layer["exact"] and layer["algorithm"] == "as stored" for layer in report.data["layers"])
    errors = layer_errors(tmp_path / "out", Reference(packed.folder), np.arange(5, 40))
    assert len(errors) == 8 + 1  # four products a layer, and the head
    assert max(errors.values()) < 1e-5
