"""No tensor of a checkpoint is lost on its way into the graph, and no weight of the graph is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.models.model import Model
from coldpress.networks.layerwise import Layerwise
from coldpress.networks.reference import Reference
from coldpress.parts import Context
from coldpress.passes.press import Press
from tests.architectures import checkpoint
from tests.conftest import weights

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def press(tmp_path: Path) -> Callable[[Path], Model]:
    def run(folder: Path) -> Model:
        (tmp_path / "out").mkdir()
        return Press(precision="fp32", logits="all").run(Model(folder, "hf", "x"), Context(tmp_path / "out"))

    return run


def change(folder: Path, **tensors: np.ndarray | None) -> Path:
    """Add tensors to a checkpoint, whose names have ``__`` for a dot, or take them out."""
    stored = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        stored[name.replace("__", ".")] = value  # type: ignore[assignment]
    kept = {name: value for name, value in stored.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.up_proj.bias", "model.layers.0.mlp.up_proj.weight_scale", "model.layers.2.mlp.up_proj.weight"],
)
def test_a_tensor_that_nothing_reads_stops_the_press_by_name(make_model, press, name: str):
    tensors = {**weights(), name: np.full((128, 1) if "scale" in name else 128, 0.5, np.float32)}
    with pytest.raises(ColdpressError, match=f"does not read '{name}'"):
        press(make_model(tensors=tensors))


def test_what_transformers_does_not_load_either_is_left_out(make_model, press):
    stored = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
        "model.layers.0.mlp.gate_proj.bias": np.zeros(128, np.float32),
        "lm_head.weight": weights()[EMBEDDING],
    }
    folder = make_model(tensors={**weights(), **stored})
    window = np.arange(5, 20)
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(window)[None]).logits[0]
    np.testing.assert_allclose(Decoder(press(folder).path).logits(window), expected.detach().numpy(), atol=1e-4)


def test_the_heads_of_a_graph_of_hidden_states_are_named(press, tmp_path: Path):
    pressed = press(checkpoint("bert", tmp_path / "bert").folder)
    assert any("'pooler.dense.weight'" in remark for remark in pressed.provenance.remarks)


def test_a_tensor_that_a_weight_is_computed_from_is_read(press, tmp_path: Path):
    press(checkpoint("gpt_neox", tmp_path / "gpt_neox").folder)


def test_weights_of_another_size_than_the_configuration_says_are_refused(press, tmp_path: Path):
    folder = checkpoint("phi3", tmp_path / "phi3").folder
    name = "model.layers.1.self_attn.qkv_proj.weight"
    longer = np.vstack([load_file(folder / "model.safetensors")[name], np.ones((16, 64), np.float32)])
    with pytest.raises(ColdpressError, match=r"do not fit config.json: .* 144, expected 128"):
        press(change(folder, **{name.replace(".", "__"): longer}))


def test_a_weight_that_the_checkpoint_lacks_is_not_made_up(press, tmp_path: Path):
    folder = checkpoint("vit", tmp_path / "vit").folder
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith("cls_token")]
    with pytest.raises(ColdpressError, match=r"no tensor for '.*cls_token'"):
        press(change(folder, **{name.replace(".", "__"): None for name in names}))


def test_a_tied_head_with_values_of_its_own_is_kept_as_transformers_keeps_it(make_model, press):
    own = weights(3)[EMBEDDING]
    folder, window = make_model(tensors={**weights(), "lm_head.weight": own}), np.arange(5, 20)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    with torch.no_grad():
        expected = (
            transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(window)[None]).logits[0].numpy()
        )
    np.testing.assert_allclose(Decoder(press(folder).path).logits(window), expected, atol=1e-4)
    np.testing.assert_allclose(next(Reference(folder).logits([window])), expected, atol=1e-4)
    layers = Layerwise(folder, window[None])
    assert not layers.is_tied
    np.testing.assert_array_equal(layers.head_weight().numpy(), own)


def test_names_without_the_prefix_of_the_base_model_are_read_as_transformers_reads_them(make_model, press):
    tensors = {name.removeprefix("model."): value for name, value in weights().items()}
    folder, window = make_model(tensors=tensors), np.arange(5, 20)
    with torch.no_grad():
        expected = (
            transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(window)[None]).logits[0].numpy()
        )
    np.testing.assert_allclose(next(Reference(folder).logits([window])), expected, atol=1e-4)
    np.testing.assert_allclose(Decoder(press(folder).path).logits(window), expected, atol=1e-4)
