"""Experts apart, each with its own matrices, are the experts that transformers has fused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import coldpress.calibration.grams as grams_module
from coldpress.calibration.grams import collect
from coldpress.errors import ColdpressError
from coldpress.networks.decoder_layer import Watcher
from coldpress.networks.layerwise import Layerwise
from coldpress.networks.reference import Reference
from tests.architectures import checkpoint

APART = ("qwen3_moe", "qwen3_moe_mixed", "qwen2_moe", "mixtral", "olmoe", "glm4_moe")
FUSED = ("granitemoe", "gpt_oss")


def some_windows() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(3, 320, length) for length in (24, 24, 9)]


def transformers_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model: Any, window: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.tensor(window)[None], use_cache=False).logits[0].numpy()


def given_to_experts(model: Any, ids: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each fused module of experts, its inputs ``[tokens, width]`` and the experts of each token ``[tokens,
    k]``."""
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(
                lambda _module, args, name=name: seen.update({name: (args[0].numpy(), args[1].numpy())})
            )
    with torch.inference_mode():
        model(input_ids=torch.as_tensor(ids), use_cache=False)
    return seen


@pytest.mark.parametrize("name", [*APART, *FUSED])
def test_logits_are_those_of_transformers(name: str, tmp_path: Path):
    folder = checkpoint(name, tmp_path).folder
    model, reference, windows = transformers_model(folder), Reference(folder), some_windows()
    assert reference.streamed
    for window, logits in zip(windows, reference.logits(windows), strict=True):
        np.testing.assert_allclose(logits, logits_of(model, window), atol=1e-5)
    assert all(parameter.device.type == "meta" for parameter in reference._model.parameters())


def test_an_expert_that_no_token_comes_to_is_not_read(tmp_path: Path):
    folder, window = checkpoint("qwen3_moe", tmp_path).folder, np.array([7])
    model = transformers_model(folder)
    chosen = given_to_experts(model, window[None])
    tensors = load_file(folder / "model.safetensors")
    for path, (_, places) in chosen.items():
        for place in set(range(4)) - set(places.flatten()):
            tensors[f"{path}.{place}.up_proj.weight"][:] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (logits,) = Reference(folder).logits([window])
    np.testing.assert_allclose(logits, logits_of(model, window), atol=1e-5)


def test_experts_that_are_stored_as_one_tensor_stay_so(tmp_path: Path):
    folder = checkpoint("qwen3_moe", tmp_path).folder
    model = transformers_model(folder)
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "expert" not in name}
    fused = {name: tensor.numpy() for name, tensor in model.state_dict().items() if "experts" in name}
    save_file({**tensors, **fused}, folder / "model.safetensors", metadata={"format": "pt"})
    reference, window = Reference(folder), some_windows()[0]
    assert reference.streamed
    (logits,) = reference.logits([window])
    np.testing.assert_allclose(logits, logits_of(model, window), atol=1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_fused_experts_are_not_passed_over_when_a_model_is_quantized(name: str, tmp_path: Path):
    with pytest.raises(ColdpressError, match="one tensor holds the matrices of all experts") as caught:
        Layerwise(checkpoint(name, tmp_path).folder, np.zeros((1, 8), np.int64))
    assert "auto-opt --algorithm kquant" in str(caught.value.hint)


def test_names_are_those_of_the_checkpoint(tmp_path: Path):
    folder = checkpoint("mixtral", tmp_path).folder
    decoder = Layerwise(folder, np.zeros((1, 8), np.int64))
    stored = {name for name in load_file(folder / "model.safetensors") if ".layers." in name}
    assert {name for layer in decoder.layers for name in decoder.weights(layer)} == stored
    linears = set(decoder.linears(decoder.layers[0]))
    assert "model.layers.0.block_sparse_moe.experts.3.w2" in linears
    assert "model.layers.0.block_sparse_moe.gate" not in linears
    assert decoder.experts(decoder.layers[0])[1] == tuple(
        f"model.layers.0.block_sparse_moe.experts.1.{part}" for part in ("w1", "w3", "w2")
    )


def test_routers_are_no_linears_to_quantize(tmp_path: Path):
    decoder = Layerwise(checkpoint("qwen2_moe", tmp_path).folder, np.zeros((1, 8), np.int64))
    names = {name.rpartition(".")[2] for name in decoder.linears(decoder.layers[0])}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(("name", "leaves"), [("qwen2_moe", ("gate_proj", "up_proj")), ("mixtral", ("w1", "w3"))])
def test_each_expert_has_the_gram_matrix_of_its_own_tokens(
    name: str, leaves: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grams_module, "multiplies_in_bfloat16", lambda device: False)
    folder, ids = checkpoint(name, tmp_path / "model").folder, np.random.default_rng(0).integers(3, 320, (5, 12))
    decoder = Layerwise(folder, ids, batch=2)
    (tmp_path / "grams").mkdir()
    found = collect(decoder, tmp_path / "grams")
    model = transformers_model(folder)
    seen = given_to_experts(model, ids)
    for layer in decoder.layers:
        grams = {gram.modules: gram for gram in found.get(layer)}
        inputs, chosen = seen[f"{layer}.mlp.experts"]
        block = next(module for modules in grams for module in modules if ".experts." in module).partition(".experts")[
            0
        ]
        for place in range(4):
            gram = grams[tuple(f"{block}.experts.{place}.{leaf}" for leaf in leaves)]
            own = inputs[(chosen == place).any(axis=1)].astype(np.float64)
            assert gram.tokens == len(own)
            np.testing.assert_allclose(gram.matrix, own.T @ own, atol=1e-4 * (own.T @ own).max())
        assert sum(gram.tokens for modules, gram in grams.items() if modules[0].endswith(leaves[0])) >= 2 * ids.size


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", ["qwen2_moe", "glm4_moe"])
def test_what_is_no_expert_is_watched_once(name: str, bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Though a layer with experts runs twice, up to them and again, no input counts twice."""
    monkeypatch.setattr(grams_module, "multiplies_in_bfloat16", lambda device: bfloat16)
    ids = np.random.default_rng(0).integers(3, 320, (5, 12))
    decoder = Layerwise(checkpoint(name, tmp_path / "model").folder, ids, batch=2)
    (tmp_path / "grams").mkdir()
    found = collect(decoder, tmp_path / "grams")
    for layer in decoder.layers:
        grams = [gram for gram in found.get(layer) if ".experts." not in gram.modules[0]]
        assert {gram.tokens for gram in grams} == {ids.size}
        assert {module for gram in grams for module in gram.modules} == {
            module for module in decoder.linears(layer) if ".experts." not in module
        }
        came = [gram.tokens for gram in found.get(layer) if ".experts." in gram.modules[0]]
        assert sum(came) == (4 * ids.size if came else 0), "two experts a token, and two matrices an expert"


def test_one_expert_is_in_memory_at_a_time(tmp_path: Path):
    ids = np.random.default_rng(0).integers(3, 320, (5, 12))
    decoder = Layerwise(checkpoint("mixtral", tmp_path).folder, ids, batch=2)
    layer = decoder.layers[0]
    experts = {name: module for name, module in decoder.linears(layer).items() if ".experts." in name}
    present: list[set[str]] = []

    class Counting(Watcher):
        def see(self, module: str, inputs: torch.Tensor) -> None:
            real = {name for name, linear in experts.items() if linear.weight.device.type != "meta"}
            present.append({name.rpartition(".")[0] for name in real})

    states = np.empty((*ids.shape, decoder.width), np.float32)
    decoder.embed(states)
    decoder.run(layer, decoder.weights(layer), states, states, Counting())
    assert max(map(len, present)) == 1
    assert len(set().union(*present)) == 4


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [3, 7])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(after: int, tmp_path: Path):
    folder, ids = checkpoint("qwen2_moe", tmp_path / "model").folder, np.random.default_rng(0).integers(3, 320, (6, 12))

    def run(name: str, stop: int) -> int:
        seen = []

        def progress(_what: str, done: float, _total: float) -> None:
            seen.append(done)
            if len(seen) == stop:
                raise Stopped

        (tmp_path / name).mkdir(exist_ok=True)
        collect(Layerwise(folder, ids, batch=2), tmp_path / name, progress=progress)
        return len(seen)

    whole = run("whole", 0)
    with pytest.raises(Stopped):
        run("stopped", after)
    assert run("stopped", 0) == whole if after < 4 else run("stopped", 0) < whole
    for file in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "stopped" / file.name).read_bytes() == file.read_bytes(), file.name
    assert not list((tmp_path / "stopped").glob("*.part"))


def test_memory_counts_one_expert(tmp_path: Path):
    def fixed(experts: int) -> int:
        changes = {"num_experts": experts, "moe_intermediate_size": 512}
        folder = checkpoint("qwen3_moe", tmp_path / str(experts), **changes).folder
        return Layerwise(folder, np.zeros((1, 8), np.int64)).memory(8)[0]

    few, many = fixed(4), fixed(16)
    added = 12 * 3 * 512 * 64
    assert added < many - few < 2 * added, "what is packed counts; floats would be four bytes and more a weight"
