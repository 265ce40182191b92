"""``rotate``: other weights, the same function; what cannot be turned is refused."""

from __future__ import annotations

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.networks.reference import Reference
from tests.architectures import checkpoint


@pytest.mark.parametrize("name", ["llama", "smollm2", "qwen2", "qwen3", "mistral", "granite", "phi3", "smollm3"])
def test_a_rotated_network_computes_what_it_did(name, tmp_path):
    folder = checkpoint(name, tmp_path / "model").folder
    coldpress.run_pass("rotate", folder, tmp_path / "rotated", cache_dir=tmp_path / "cache")
    ids = [np.arange(5, 30)]
    [expected], [found] = (list(Reference(place).logits(ids)) for place in (folder, tmp_path / "rotated"))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    weight = "model.layers.1.mlp.down_proj.weight"
    from coldpress.networks.checkpoint import Checkpoint

    before, after = (Checkpoint(place).tensors[weight] for place in (folder, tmp_path / "rotated"))
    assert not np.allclose(before.rows(0, 8), after.rows(0, 8), atol=1e-2)


@pytest.mark.parametrize("name", ["gemma3", "olmo2", "gpt_neox"])
def test_a_network_that_cannot_be_turned_is_refused(name, tmp_path):
    folder = checkpoint(name, tmp_path / "model").folder
    with pytest.raises(ColdpressError, match="cannot be rotated"):
        coldpress.run_pass("rotate", folder, tmp_path / "rotated", cache_dir=tmp_path / "cache")


def test_quarot_rotates_then_quantizes(tmp_path, tiny_model):
    options = {"cache_dir": tmp_path / "cache", "group_size": 16, "num_samples": 4, "max_seq_len": 64}
    report = coldpress.quantize(tiny_model, tmp_path / "out", algorithm="quarot", **options).data
    assert [step["name"] for step in report["passes"]] == ["rotate", "quantize"]
    assert report["quality"]["kl"] < 0.1
    with pytest.raises(ColdpressError, match="trains its rotations"):
        coldpress.quantize(tiny_model, tmp_path / "other", algorithm="spinquant", **options)
