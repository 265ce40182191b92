"""The bits of the head: measured against what a token is spared to read, told, or as they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.calibration import head
from coldpress.calibration.head import Trial, divergence, saved_bytes
from coldpress.metrics.divergence import kl_divergence
from coldpress.networks.layerwise import Layerwise
from coldpress.quant.grid import Grid, dequantize
from coldpress.quant.rtn import rtn
from tests.conftest import weights


@pytest.fixture
def press(tmp_path, text):
    def call(folder, name="out", **options):
        data = {"data_files": (str(text),), "max_seq_len": 32, "num_samples": 8}
        return coldpress.optimize(
            folder, tmp_path / name, cache_dir=tmp_path / "cache", no_verify=True, **data, **options
        ).data

    return call


def untied():
    tensors = weights()
    return {**tensors, "lm_head.weight": weights(seed=1)["model.embed_tokens.weight"] / 4}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("nats", "bits"), [(1e-9, 8), (1e9, 4)])
def test_four_bits_where_they_pay(tied, nats, bits, make_model, press, monkeypatch):
    monkeypatch.setattr(head, "_NATS", nats)
    folder = make_model() if tied else make_model(tensors=untied(), tie_word_embeddings=False)
    report = press(folder)
    assert {layer["bits"] for layer in report["layers"] if layer["role"] == "head"} == {bits}
    found = report["calibration"]["head"]
    assert found["bits"] == bits
    assert (found["divergence"] <= found["worth"]) == (bits == 4)
    [note] = [note for note in report["source"]["notes"] if note.startswith("The head")]
    assert f"{found['divergence']:.2g} nats" in note
    assert f"{found['saved']:.0%}" in note


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_bits_that_are_asked_for_are_not_measured(bits, tiny_model, press):
    report = press(tiny_model, head_bits=bits)
    assert "head" not in report["calibration"]
    assert {layer["bits"] for layer in report["layers"] if layer["role"] == "head"} == ({bits} - {16})
    calibrated = [layer for layer in report["calibration"]["layers"] if layer["role"] != "linear"]
    assert [layer["algorithm"] for layer in calibrated] == (["gptq"] if bits == 4 else [])


@pytest.mark.parametrize("tied", [True, False])
def test_the_divergence_is_that_of_the_distributions(tied, make_model, tmp_path):
    folder = make_model(tensors=None if tied else untied(), tie_word_embeddings=tied)
    decoder = Layerwise(folder, np.zeros((1, 4), np.int64), device="cpu", scratch=tmp_path)
    inputs = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    weight = decoder.head_weight().numpy().astype(np.float64)

    def rounded(rows):
        return dequantize(rtn(rows, Grid(4, 32, False)), 64)

    exact = kl_divergence(inputs @ weight.T, inputs @ rounded(weight.astype(np.float32)).astype(np.float64).T).mean()
    assert divergence(decoder, inputs, rounded) == pytest.approx(exact * (2 if tied else 1), rel=0.35)


def test_the_share_of_bytes_counts_codes_and_scales():
    # 8.5 bits a weight of 100 x 64 are 6,800 bytes, of which 3,700 stay, beside 3,200 of the layers
    assert saved_bytes((100, 64), 3700, 3200) == pytest.approx(3100 / 10000)
    assert Trial(0.01, 0.31).pays and not Trial(0.05, 0.31).pays
    assert not Trial(0.001, 0.0).pays


def test_head_bits_without_effect_are_refused(tiny_model, quantize):
    for options in ({"precision": "int8"}, {"embeddings": True}, {"target_bits": 4.5}):
        with pytest.raises(ColdpressError, match="head_bits has no effect"):
            coldpress.run_pass("quantize", tiny_model, "unused", head_bits=4, **options)
