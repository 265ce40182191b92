"""The reference is what transformers loads; coldpress' own reading speaks only where that is impossible, and is
compared first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.networks.referee import misread, reference_of
from coldpress.networks.shards import Shards
from coldpress.quant.grid import Grid
from tests.adapters import make_adapter
from tests.architectures import checkpoint
from tests.conftest import write_model
from tests.packed_folders import ignoring_the_rest, pack_folder, transformers_logits

WINDOW = np.arange(3, 27)
NOTHING = 0.0


def in_bfloat16(folder: Path, besides: str = "nothing") -> Path:
    """The tensors of a checkpoint in bfloat16, those whose names end in ``besides`` in float32."""
    file = folder / "model.safetensors"
    tensors = {name: value if name.endswith(besides) else value.bfloat16() for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def packed(source: Path, output: Path) -> Path:
    """A folder of compressed-tensors that transformers loads."""
    made = pack_folder(source, output, "compressed-tensors", lambda _: Grid(4, 32, True))
    ignoring_the_rest(made)
    return made.folder


@pytest.mark.parametrize("besides", ["nothing", "norm.weight"])
def test_transformers_speaks_for_what_it_can_load_and_in_float32(tmp_path: Path, besides: str):
    folder = in_bfloat16(checkpoint("gemma3", tmp_path).folder, besides)  # it scales its embedding by a buffer
    reference, voice = reference_of(folder)
    assert voice.by == "transformers" and transformers.__version__ in voice.says and not reference.streamed
    np.testing.assert_allclose(next(reference.logits([WINDOW])), transformers_logits(folder, WINDOW), atol=1e-6)


def test_its_weights_stay_in_mapped_files(tiny_model: Path):
    reference, _ = reference_of(tiny_model, max_memory=NOTHING)
    weight = reference.network.get_input_embeddings().weight
    with Path("/proc/self/maps").open() as maps:
        places = [line.split() for line in maps if line.rstrip().endswith(str(tiny_model / "model.safetensors"))]
    ranges = [[int(end, 16) for end in place[0].split("-")] for place in places]
    assert any(start <= weight.data_ptr() < stop for start, stop in ranges)


@pytest.mark.parametrize("kind", ["compressed-tensors", "experts"])
@pytest.mark.parametrize("fits", [True, False])
def test_what_does_not_fit_is_streamed_after_a_part_was_compared(
    tiny_model: Path, tmp_path: Path, kind: str, fits: bool
):
    if kind == "experts":
        folder = checkpoint("qwen3_moe", tmp_path / "moe", num_hidden_layers=3, mlp_only_layers=[0]).folder
    else:
        folder = packed(tiny_model, tmp_path)
    reference, voice = reference_of(folder, max_memory=None if fits else NOTHING)
    np.testing.assert_allclose(next(reference.logits([WINDOW])), transformers_logits(folder, WINDOW), atol=1e-5)
    assert (voice.by, reference.streamed) == (("transformers", False) if fits else ("coldpress", True))
    if not fits:
        assert voice.compared_layers == (2 if kind == "experts" else 1)  # of each kind of layer the first
        assert "more than the 0.0 GB" in voice.why and voice.why in voice.says


def test_a_part_that_is_read_otherwise_stops_by_name(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = packed(tiny_model, tmp_path)
    wrong, read = "model.layers.0.mlp.up_proj.weight", Shards.tensor

    def misread(self: Shards, name: str) -> torch.Tensor:
        return read(self, name) * (1.01 if name == wrong else 1.0)

    monkeypatch.setattr(Shards, "tensor", misread)
    with pytest.raises(ColdpressError, match=f"otherwise than transformers does.*: {wrong} differ") as caught:
        reference_of(folder, max_memory=NOTHING)
    assert caught.value.exit_code == WORK_FAILED


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_a_format_that_transformers_cannot_load_here_is_said(tiny_model: Path, tmp_path: Path, kind: str):
    folder = pack_folder(tiny_model, tmp_path, kind, lambda _: Grid(4, 32, True)).folder
    with pytest.raises((ImportError, ValueError, RuntimeError)):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    reference, voice = reference_of(folder)
    assert reference.streamed and voice.by == "coldpress" and "cannot load it here" in voice.says


def test_what_transformers_would_make_up_is_refused(tmp_path: Path):
    folder = write_model(tmp_path / "m", tie_word_embeddings=False)
    with pytest.raises(ColdpressError, match=r"no tensor for lm_head\.weight, and would make up values"):
        reference_of(folder)


def test_a_head_of_its_own_is_kept_in_any_type(tmp_path: Path):
    folder = write_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(512, 64, generator=torch.Generator().manual_seed(3))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    reference, _ = reference_of(in_bfloat16(folder))
    np.testing.assert_allclose(next(reference.logits([WINDOW])), transformers_logits(folder, WINDOW), atol=1e-5)


def test_what_is_misread_is_found_in_the_whole_too(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    wrong, read = "model.layers.1.self_attn.k_proj.weight", Shards.tensor
    assert misread(tiny_model) == []
    monkeypatch.setattr(Shards, "tensor", lambda self, name: read(self, name) + (0.01 if name == wrong else 0))
    assert misread(tiny_model) == [wrong]


@pytest.mark.parametrize("besides", ["nothing", ""])
def test_an_adapter_is_put_on_one_more_of_what_transformers_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, besides: str
):
    """In bfloat16, and in the float32 in which the first one runs as it is.

    Our own reading of files has no part in it.
    """
    folder = in_bfloat16(write_model(tmp_path / "m"), besides)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned = make_adapter(base, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    with torch.inference_mode():
        expected = tuned(torch.from_numpy(WINDOW)[None]).logits[0].numpy()
    without = transformers_logits(folder, WINDOW)
    monkeypatch.setattr(Shards, "tensor", lambda self, name: torch.full(self.shape(name), torch.nan))
    reference, _ = reference_of(folder)
    other = reference.another()
    assert other.attach(tmp_path / "adapter") == "PEFT"
    np.testing.assert_allclose(next(other.logits([WINDOW])), expected, atol=1e-5)
    np.testing.assert_allclose(next(reference.logits([WINDOW])), without, atol=1e-5)
