"""``rotate``: other weights, the same function; what cannot be turned is refused."""

from __future__ import annotations

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.models.checkpoint import Checkpoint
from coldpress.networks.reference import Reference
from tests.architectures import checkpoint
from tests.conftest import write_tokenizer


@pytest.mark.parametrize("name", ["llama", "smollm2", "qwen2", "qwen3", "mistral", "granite", "phi3", "smollm3"])
def test_a_rotated_network_computes_what_it_did(name, tmp_path):
    folder = checkpoint(name, tmp_path / "model").folder
    coldpress.run_pass("rotate", folder, tmp_path / "rotated", cache_dir=tmp_path / "cache")
    ids = [np.arange(5, 30)]
    [expected], [found] = (list(Reference(place).logits(ids)) for place in (folder, tmp_path / "rotated"))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    weight = "model.layers.1.mlp.down_proj.weight"
    before, after = (Checkpoint(place).tensors[weight] for place in (folder, tmp_path / "rotated"))
    assert not np.allclose(before.rows(0, 8), after.rows(0, 8), atol=1e-2)


@pytest.mark.parametrize("name", ["gemma3", "olmo2", "gpt_neox"])
def test_a_network_that_cannot_be_turned_is_refused(name, tmp_path):
    folder = checkpoint(name, tmp_path / "model").folder
    with pytest.raises(ColdpressError, match="cannot be rotated"):
        coldpress.run_pass("rotate", folder, tmp_path / "rotated", cache_dir=tmp_path / "cache")


def test_quarot_rotates_then_quantizes(tmp_path, tiny_model):
    report = coldpress.quantize(tiny_model, tmp_path / "out", algorithm="quarot", **options(tmp_path)).data
    assert [step["name"] for step in report["passes"]] == ["rotate", "quantize"]
    assert report["passes"][0]["parameters"]["rotation"] == "quarot"
    assert report["passes"][1]["parameters"]["algorithm"] == "best"
    assert report["quality"]["kl"] < 0.1
    assert any("head a matrix of its own" in note for note in report["source"]["notes"])


def options(tmp_path):
    return {"cache_dir": tmp_path / "cache", "group_size": 16, "num_samples": 4, "max_seq_len": 64}


@pytest.mark.full
def test_a_learned_rotation_stands_before_any_algorithm(tmp_path, tiny_model):
    report = coldpress.quantize(
        tiny_model, tmp_path / "out", rotation="spinquant", algorithm="rtn", symmetric=True, **options(tmp_path)
    ).data
    rotated, quantized = (step["parameters"] for step in report["passes"])
    assert (rotated["rotation"], rotated["symmetric"]) == ("spinquant", True)
    assert rotated["data"]["parameters"] == {"max_seq_len": 64, "max_samples": 4}
    assert (quantized["algorithm"], quantized["data"]) == ("rtn", None)
    random = coldpress.quantize(
        tiny_model,
        tmp_path / "random",
        rotation="quarot",
        algorithm="rtn",
        symmetric=True,
        group_size=16,
        tolerance="9",
    ).data
    error = {
        name: [layer["relative_error"] for layer in made["layers"]] for name, made in (("s", report), ("q", random))
    }
    assert np.mean(np.square(error["s"])) < np.mean(np.square(error["q"]))


def test_a_network_turned_as_learned_computes_what_it_did(tmp_path):
    folder = checkpoint("qwen3", tmp_path / "model").folder
    write_tokenizer(folder)
    learned = {"rotation": "spinquant", **options(tmp_path)}
    coldpress.run_pass("rotate", folder, tmp_path / "rotated", **learned)
    ids = [np.arange(5, 30)]
    [expected], [found] = (list(Reference(place).logits(ids)) for place in (folder, tmp_path / "rotated"))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.full
def test_a_pressed_model_can_be_rotated_too(tmp_path, tiny_model):
    found = coldpress.optimize(
        tiny_model,
        tmp_path / "out",
        algorithm="kquant",
        rotation="quarot",
        tolerance="kl=0.0001",
        cache_dir=tmp_path / "cache",
    ).data
    assert [step["name"] for step in found["passes"]] == ["rotate", "press"]
    assert found["quality"]["kl"] < 0.1
    # of rotated layers the outputs say nothing beside the source's
    assert "rounding changed its weights by" in found["reasons"][-1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"algorithm": "quarot", "rotation": "spinquant"}, "are two rotations"),
        ({"algorithm": "rtn", "rotation": "quarot", "num_samples": 4}, "num_samples has no effect with rtn"),
        ({"rotation": "hadamard"}, "is not a choice"),
    ],
)
def test_rotations_that_make_no_sense_are_refused(wrong, message, tmp_path, tiny_model):
    with pytest.raises(ColdpressError, match=message):
        coldpress.quantize(tiny_model, tmp_path / "out", cache_dir=tmp_path / "cache", **wrong)


def test_a_rotation_of_floats_is_refused(tmp_path, tiny_model):
    with pytest.raises(ColdpressError, match="quarot has no effect with precision fp32"):
        coldpress.optimize(tiny_model, tmp_path / "out", precision="fp32", rotation="quarot")
    with pytest.raises(ColdpressError, match="group_size has no effect with the rotation quarot"):
        coldpress.run_pass("rotate", tiny_model, tmp_path / "out", group_size=64, cache_dir=tmp_path / "cache")


def test_the_ends_keep_the_type_they_are_stored_in(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = checkpoint("llama", tmp_path / "model").folder
    halves = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    coldpress.run_pass("rotate", folder, tmp_path / "rotated", cache_dir=tmp_path / "cache")
    made = Checkpoint(tmp_path / "rotated").tensors
    assert {made[name].dtype for name in ("model.embed_tokens.weight", "lm_head.weight")} == {"BF16"}
