"""How much tokens count: what the gradients of the whole network say, and what it does to a Gram matrix."""

from __future__ import annotations

import numpy as np
import pytest

from coldpress.calibration import grams
from coldpress.calibration.saliency import saliency
from coldpress.networks.layerwise import Layerwise
from tests.architectures import checkpoint

IDS = np.random.default_rng(0).integers(3, 320, (5, 12))


def float_grams(decoder: Layerwise, folder, counting=None):
    folder.mkdir()
    return grams.collect(decoder, folder, counting=counting)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "phi3", "qwen2", "granite"])
def test_a_token_counts_as_the_gradients_of_the_whole_network_say(name, tmp_path, monkeypatch):
    """Where the answer that is drawn is always the likeliest, transformers and PyTorch tell the same."""
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(torch, "multinomial", lambda chances, count, generator: chances.argmax(-1, keepdim=True))
    folder = checkpoint(name, tmp_path / "model").folder
    found = saliency(Layerwise(folder, IDS), tmp_path, lambda *_: None)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    squares: dict[str, torch.Tensor] = {}

    def listen(name: str):
        return lambda _module, _given, slope: squares.update({name: slope[0].square().sum(-1).flatten()})

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_full_backward_hook(listen(path))
    logits = model(torch.as_tensor(IDS)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), logits.argmax(-1).flatten(), reduction="sum").backward()
    shared = {"q_proj": ("q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_proj", "up_proj")}
    assert found
    for leader, counts in found.items():
        parent, _, own = leader.rpartition(".")
        roots = sum(squares[f"{parent}.{member}"] for member in shared.get(own, (own,))).sqrt()
        np.testing.assert_allclose(counts, roots / roots.mean(), rtol=1e-3, atol=1e-5)


def test_a_token_that_does_not_count_is_as_good_as_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(grams, "multiplies_in_bfloat16", lambda device: False)
    folder = checkpoint("llama", tmp_path / "model").folder
    counts = np.repeat(np.float32([1, 1, 0, 0, 1]), IDS.shape[1])
    decoder = Layerwise(folder, IDS)
    counting = {module: counts for layer in decoder.layers for module in decoder.linears(layer)}
    weighed = float_grams(decoder, tmp_path / "weighed", counting)
    fewer = float_grams(Layerwise(folder, IDS[[0, 1, 4]]), tmp_path / "fewer")
    for layer in decoder.layers:
        for one, other in zip(weighed.get(layer), fewer.get(layer), strict=True):
            assert one.modules == other.modules
            assert (one.tokens, one.alike) == (IDS.size, other.tokens)
            np.testing.assert_allclose(one.matrix, other.matrix, rtol=1e-3, atol=1e-3)
