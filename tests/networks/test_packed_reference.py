"""The streamed reference of a quantized folder is the model that its codes stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coldpress.networks.reference import Reference
from coldpress.quant.grid import Grid
from tests.architectures import checkpoint
from tests.conftest import weights, write_model
from tests.packed_folders import FORMATS, pack_folder, transformers_logits

WINDOW = np.arange(3, 27)


def logits_of(folder: Path) -> np.ndarray:
    (logits,) = Reference(folder).logits([WINDOW])
    return logits


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_layers_have_the_values_of_their_codes(tiny_model: Path, tmp_path: Path, kind: str, symmetric: bool):
    packed = pack_folder(tiny_model, tmp_path, kind, lambda _: Grid(4, 32, symmetric))
    assert Reference(packed.folder).streamed
    np.testing.assert_allclose(logits_of(packed.folder), transformers_logits(packed.plain, WINDOW), atol=1e-5)


def test_a_quantized_head_and_embedding_are_read(tmp_path: Path):
    tensors = {**weights(), "lm_head.weight": weights(1)["model.embed_tokens.weight"]}
    source = write_model(tmp_path / "source", tensors, tie_word_embeddings=False)
    packed = pack_folder(source, tmp_path, "compressed-tensors", lambda _: Grid(8, 64, False), ("lm_head", "tokens"))
    assert set(packed.codes) == {"lm_head", "model.embed_tokens"}
    np.testing.assert_allclose(logits_of(packed.folder), transformers_logits(packed.plain, WINDOW), atol=1e-5)


def test_hidden_outputs_are_those_of_the_values(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, False))
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
    found, expected = (Reference(folder).hidden(WINDOW, names) for folder in (packed.folder, packed.plain))
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_nothing_stays_in_memory(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "awq", lambda _: Grid(4, 32, True))
    reference = Reference(packed.folder)
    list(reference.logits([WINDOW]))
    assert all(parameter.device.type == "meta" for parameter in reference._model.parameters())


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2_moe"])
def test_quantized_experts_are_streamed(name: str, tmp_path: Path):
    source = checkpoint(name, tmp_path / "source").folder
    packed = pack_folder(source, tmp_path, "compressed-tensors", lambda _: Grid(4, 16, False))
    assert any("experts.3" in module for module in packed.codes)
    assert Reference(packed.folder).streamed
    np.testing.assert_allclose(logits_of(packed.folder), transformers_logits(packed.plain, WINDOW), atol=1e-5)
