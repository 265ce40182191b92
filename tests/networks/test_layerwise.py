"""A decoder run layer by layer is the decoder; its Gram matrices are those of the rounded network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import coldpress.calibration.grams as grams_module
from coldpress.calibration.folds import folds_of
from coldpress.calibration.grams import HEAD, GramFolder, collect
from coldpress.errors import ColdpressError
from coldpress.networks.layerwise import Layerwise
from tests.architectures import checkpoint

FOLDED = ("llama", "smollm2", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "mistral", "granite", "smollm3")
MIXTURES = ("qwen3_moe", "qwen3_moe_mixed", "qwen2_moe", "mixtral", "olmoe")
WALKED = (*FOLDED, *MIXTURES, "olmo2", "gpt_neox", "glm4_moe")


def token_ids(windows: int = 3, tokens: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 320, (windows, tokens))


def transformers_model(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def walked(decoder: Layerwise, weights=lambda decoder, layer: decoder.weights(layer)) -> np.ndarray:
    states = np.empty((*decoder.ids.shape, decoder.width), np.float32)
    decoder.embed(states)
    for layer in decoder.layers:
        decoder.run(layer, weights(decoder, layer), states, states)
    return np.concatenate([output.numpy() for _, output in decoder.outputs(states)])


@pytest.mark.parametrize("name", WALKED)
def test_layer_by_layer_is_what_transformers_computes(name, tmp_path):
    import torch

    folder = checkpoint(name, tmp_path / "model").folder
    ids = token_ids()
    model = transformers_model(folder)
    with torch.inference_mode():
        expected = model.base_model(torch.as_tensor(ids), use_cache=False).last_hidden_state.numpy()
    np.testing.assert_allclose(walked(Layerwise(folder, ids, batch=2)), expected, atol=1e-5)


@pytest.mark.parametrize("name", [*FOLDED, *MIXTURES])
def test_a_fold_changes_nothing(name, tmp_path):
    """Any scales, folded at every place that a layer has, leave what the network computes."""
    folder = checkpoint(name, tmp_path / "model").folder
    decoder = Layerwise(folder, token_ids())
    random = np.random.default_rng(1)

    def scaled(decoder: Layerwise, layer: str):
        weights, experts = decoder.weights(layer), decoder.experts(layer)
        folds = folds_of(layer, weights, decoder.config, experts)
        assert len(folds) == (3 + (name == "qwen2_moe") + len(experts) if experts else 4)
        for fold in folds:
            size = weights[f"{fold.readers[0]}.weight"].shape[1]
            scales = np.exp(random.standard_normal(size)).astype(np.float32)
            if fold.heads:
                queries, shared = fold.heads
                grouped = scales.reshape(shared, queries // shared, -1)
                scales = np.broadcast_to(grouped[:, :1], grouped.shape).reshape(-1).copy()
            weights, _ = fold.apply(weights, scales, "float32")
        return weights

    plain = walked(decoder)
    folded = walked(decoder, scaled)
    assert np.abs(folded - plain).max() < 1e-4 * np.abs(plain).max()


def test_a_norm_stored_in_bfloat16_still_loses_nothing(tmp_path):
    from ml_dtypes import bfloat16

    folder = checkpoint("llama", tmp_path / "model").folder
    decoder = Layerwise(folder, token_ids())
    layer = decoder.layers[0]
    weights = decoder.weights(layer)
    fold = folds_of(layer, weights, decoder.config)[0]
    before = weights[f"{fold.readers[0]}.weight"] * weights[f"{fold.source}.weight"]
    weights, _ = fold.apply(weights, np.linspace(0.5, 2, 64, dtype=np.float32), bfloat16)
    norm = weights[f"{fold.source}.weight"]
    np.testing.assert_array_equal(norm, norm.astype(bfloat16).astype(np.float32))
    np.testing.assert_allclose(weights[f"{fold.readers[0]}.weight"] * norm, before, rtol=1e-6)


def test_a_network_that_is_not_in_the_table_is_not_folded(tmp_path):
    decoder = Layerwise(checkpoint("olmo2", tmp_path / "model").folder, token_ids())
    assert folds_of(decoder.layers[0], decoder.weights(decoder.layers[0]), decoder.config) == []


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3"])
def test_gram_matrices_are_those_of_the_float_network(name, bfloat16, tmp_path, monkeypatch):
    """In float32 to the last digits, in bfloat16 to a percent or two of so few tokens."""
    import torch

    monkeypatch.setattr(grams_module, "multiplies_in_bfloat16", lambda device: bfloat16)

    folder, ids = checkpoint(name, tmp_path / "model").folder, token_ids()
    (tmp_path / "grams").mkdir()
    found = collect(Layerwise(folder, ids, batch=2), tmp_path / "grams")
    model = transformers_model(folder)
    inputs: dict[str, np.ndarray] = {}
    body = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for module_name, module in body:
        if module_name == "lm_head":
            continue
        module.register_forward_pre_hook(
            lambda _module, args, name=module_name: inputs.update({name: args[0].flatten(0, 1).numpy()})
        )
    with torch.inference_mode():
        head = model.base_model(torch.as_tensor(ids), use_cache=False).last_hidden_state.flatten(0, 1).numpy()
    grams = {
        module: gram for layer in Layerwise(folder, ids).layers for gram in found.get(layer) for module in gram.modules
    }
    assert set(grams) == set(inputs)
    for module, gram in grams.items():
        expected = inputs[module].T.astype(np.float64) @ inputs[module]
        assert np.linalg.norm(gram.matrix - expected) < (3e-2 if bfloat16 else 1e-4) * np.linalg.norm(expected)
        assert gram.tokens == ids.size
    held = found.held()  # kept from the matrix, to try what it leads to on them
    assert 0 < len(held) < len(head) / 8
    missed = np.linalg.norm(found.get(HEAD)[0].matrix + held.T @ held - head.T @ head)
    assert missed < (3e-2 if bfloat16 else 1e-3) * np.linalg.norm(head.T @ head)
    assert not list((tmp_path / "grams").glob("*.npy*")), "states are gone when all is done"


def test_linears_with_one_input_share_a_matrix(tmp_path):
    folder = checkpoint("llama", tmp_path / "model").folder
    decoder = Layerwise(folder, token_ids())
    (tmp_path / "grams").mkdir()
    found = collect(decoder, tmp_path / "grams")
    shared = [[module.rpartition(".")[2] for module in gram.modules] for gram in found.get(decoder.layers[0])]
    assert shared == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [1, 4, 8, 11])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(after, tmp_path):
    folder, ids = checkpoint("smollm3", tmp_path / "model").folder, token_ids(6)

    def run(name: str, stop: int | None) -> list[int]:
        seen: list[int] = []

        def progress(_what: str, done: float, _total: float) -> None:
            seen.append(int(done))
            if stop is not None and len(seen) == stop:
                raise Stopped

        (tmp_path / name).mkdir(exist_ok=True)
        collect(Layerwise(folder, ids, batch=2), tmp_path / name, progress=progress)
        return seen

    whole = run("whole", None)
    with pytest.raises(Stopped):
        run("stopped", after)
    rest = run("stopped", None)
    assert len(rest) < len(whole) or after <= 3, "finished layers are not done again"
    for file in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "stopped" / file.name).read_bytes() == file.read_bytes(), file.name
    assert run("stopped", None) == [], "and in the end nothing is left to do"


def test_activations_that_are_not_finite_name_the_layer(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = checkpoint("llama", tmp_path / "model").folder
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][:] = 1e15
    tensors["model.layers.1.mlp.gate_proj.weight"][:] = 1e15
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "grams").mkdir()
    with pytest.raises(ColdpressError, match=r"model\.layers\.1\.mlp\.down_proj are not finite"):
        collect(Layerwise(folder, token_ids()), tmp_path / "grams")


def test_a_file_that_is_cut_off_is_named(tmp_path):
    folder = checkpoint("llama", tmp_path / "model").folder
    (tmp_path / "grams").mkdir()
    decoder = Layerwise(folder, token_ids())
    collect(decoder, tmp_path / "grams")
    file = tmp_path / "grams" / f"{decoder.layers[0]}.zip"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ColdpressError, match="is damaged"):
        GramFolder(tmp_path / "grams").get(decoder.layers[0])
