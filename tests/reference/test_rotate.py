"""Rotations: orthogonal, reproducible, and without any effect on what a network computes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.rotate import Stream, fold_norms, hadamard, random_rotation, rotate, rotate_stream, rotate_values


def make_llama(hidden: int, heads: tuple[int, int], head_size: int, tied: bool) -> Any:
    """A tiny random llama with biases everywhere and norms that are far from one."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=80, num_hidden_layers=2, num_attention_heads=heads[0],
        num_key_value_heads=heads[1], head_dim=head_size, vocab_size=96, tie_word_embeddings=tied,
        attention_bias=True, mlp_bias=True, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for name, tensor in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(tensor, 0.2, 3.0)
        elif "bias" in name:
            torch.nn.init.normal_(tensor, std=0.3)
    return model


def make_stream(model: Any) -> Stream:
    norms, producers, values = {"model.norm.weight": ("lm_head.weight",)}, [], []
    for layer in range(2):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        norms[f"model.layers.{layer}.input_layernorm.weight"] = tuple(f"{attention}{one}_proj.weight" for one in "qkv")
        after = f"model.layers.{layer}.post_attention_layernorm.weight"
        norms[after] = (f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight")
        producers += [f"{attention}o_proj.weight", f"{mlp}down_proj.weight"]
        values.append((f"{attention}v_proj.weight", f"{attention}o_proj.weight"))
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    return Stream("model.embed_tokens.weight", "lm_head.weight", norms, tuple(producers), tuple(values), *heads)


def read(model: Any) -> dict[str, np.ndarray]:
    weights = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return weights


def logits(model: Any, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The logits of the model with other weights; its head is its own."""
    import torch

    other = copy.deepcopy(model)
    other.lm_head.weight = torch.nn.Parameter(other.lm_head.weight.clone())
    other.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    with torch.no_grad():
        found: np.ndarray = other(torch.arange(24).reshape(2, 12) * 3).logits.numpy()
    return found


CASES = [(48, (4, 2), 12, True), (48, (4, 4), 12, False), (18, (3, 1), 6, True)]


@pytest.mark.parametrize(("hidden", "heads", "head_size", "tied"), CASES)
def test_a_rotated_llama_has_the_same_logits(hidden: int, heads: tuple[int, int], head_size: int, tied: bool) -> None:
    model = make_llama(hidden, heads, head_size, tied)
    weights = read(model)
    expected = logits(model, weights | {"lm_head.weight": model.lm_head.weight.detach().numpy()})
    turned = rotate(weights, make_stream(model), seed=1)
    assert np.abs(logits(model, turned) - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.v_proj.weight"):
        assert turned[name].dtype == np.float32
        assert not np.allclose(turned[name], weights.get(name, 0), atol=1e-2)


def test_each_step_alone_changes_nothing_either() -> None:
    model = make_llama(48, (4, 2), 12, False)
    stream, weights = make_stream(model), read(model)
    expected = logits(model, weights)
    folded = fold_norms(weights, stream)
    for turned in (
        folded,
        rotate_stream(folded, stream, random_rotation(48, 0)),
        rotate_values(weights, stream, random_rotation(12, 0)),
    ):
        assert np.abs(logits(model, turned) - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    assert all(np.array_equal(folded[norm], np.ones(48)) for norm in stream.norms)
    assert np.array_equal(weights["lm_head.weight"], read(model)["lm_head.weight"])


def test_the_seed_decides_the_rotation() -> None:
    model = make_llama(48, (4, 2), 12, False)
    stream, weights = make_stream(model), read(model)
    name = "model.layers.0.mlp.down_proj.weight"
    one, same, other = (rotate(weights, stream, seed)[name] for seed in (5, 5, 6))
    assert np.array_equal(one, same) and not np.allclose(one, other)


def test_a_norm_that_adds_to_its_weight_is_folded_with_what_it_adds() -> None:
    weights = {"embed": np.ones((3, 2), np.float32), "norm": np.array([1.0, -0.5], np.float32)}
    folded = fold_norms(weights, Stream("embed", "head", {"norm": ("head",)}, (), norm_offset=1.0))
    assert np.array_equal(folded["norm"], [0, 0])
    assert np.array_equal(folded["head"], np.broadcast_to([2, 0.5], (3, 2)))
    assert np.array_equal(folded["embed"], np.ones((3, 2)))


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 28, 36, 48, 64, 128, 576, 640, 896, 1152])
def test_hadamard_matrices_are_orthogonal_signs(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None
    assert (np.abs(matrix) == 1).all()
    assert np.array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.parametrize("size", [3, 6, 18, 52])
def test_other_sizes_get_a_random_rotation(size: int) -> None:
    assert hadamard(size) is None
    matrix = random_rotation(size, 0)
    assert np.allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)


def test_a_rotation_spreads_an_outlier_over_all_channels() -> None:
    stream = np.zeros(576)
    stream[7] = 24.0
    assert np.allclose(np.abs(stream @ random_rotation(576, 0)), 1)


def test_what_does_not_fit_is_refused() -> None:
    weights = {"embed": np.ones((3, 4), np.float32), "norm": np.array([1, 2, 1, 1], np.float32)}
    stream = Stream("embed", "head", {"norm": ("head",)}, ())
    with pytest.raises(ColdpressError, match="fold the norms"):
        rotate_stream(weights, stream, random_rotation(4, 0))
    with pytest.raises(ColdpressError, match="size 8 cannot turn"):
        rotate_stream(fold_norms(weights, stream), stream, random_rotation(8, 0))
    with pytest.raises(ColdpressError, match="no norm is followed by the head"):
        Stream("embed", "head", {"norm": ()}, ())
