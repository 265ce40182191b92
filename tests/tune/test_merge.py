"""Adapters merged into their bases: the same answers as PEFT's, types and grids of the base kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import coldpress
from coldpress.models import adapter_folder
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.model import Model
from coldpress.models.packed.folder import quantization_config, read_packed
from coldpress.parts import Context
from coldpress.passes.merge_adapter_weights import MergeAdapterWeights
from coldpress.quant.grid import Grid
from coldpress.tune.network import load_base
from tests.conftest import weights
from tests.packed_folders import pack_folder
from tests.tune.test_lora import peft_logits

GRID = Grid(4, 16, False, "float16")
LEARN = {"max_steps": 4, "learning_rate": 0.05}


@pytest.fixture
def merge(tmp_path):
    def run(folder: Path, name: str = "merged") -> Model:
        scratch = tmp_path / name
        scratch.mkdir()
        return MergeAdapterWeights().run(Model(folder, "adapter", "key"), Context(scratch))

    return run


def logits(folder: Path) -> np.ndarray:
    model = load_base(folder, torch.float32).eval()
    with torch.inference_mode():
        return model(torch.arange(5, 30)[None]).logits[0].numpy()


def test_a_float_base_answers_as_with_the_adapter_beside_it(finetune, tiny_model, tmp_path, merge):
    finetune(tiny_model, training_args=LEARN, method="dora")
    expected = peft_logits(tmp_path / "tuned")
    assert np.abs(expected - logits(tiny_model)).max() > 0.1
    merged = merge(tmp_path / "tuned")
    assert merged.format == "hf"
    np.testing.assert_allclose(logits(merged.path), expected, atol=2e-3)
    assert not quantization_config(merged.path) and (merged.path / "tokenizer.json").is_file()


def test_types_of_the_base_stay(finetune, make_model, tmp_path, merge):
    from ml_dtypes import bfloat16

    half = {name: tensor.astype(bfloat16) for name, tensor in weights().items()}
    finetune(make_model("half", tensors=half), training_args=LEARN)
    assert {span.dtype for span in Checkpoint(merge(tmp_path / "tuned").path).tensors.values()} == {"BF16"}


@pytest.mark.parametrize("kind", ["compressed-tensors", "gptq", "awq"])
def test_a_quantized_base_is_rounded_again_on_its_own_grid(kind, finetune, make_model, tmp_path, merge):
    packed = pack_folder(make_model("source"), tmp_path, kind, lambda module: GRID)
    finetune(packed.folder, training_args=LEARN, target_modules=("q_proj", "down_proj"))
    merged = merge(tmp_path / "tuned")
    before, after = read_packed(packed.folder), read_packed(merged.path)
    assert after.keys() == before.keys()
    assert quantization_config(merged.path)["quant_method"] == quantization_config(packed.folder)["quant_method"]
    for name, linear in after.items():
        assert (linear.bits, linear.grid.block_size) == (4, 16)
        same = np.array_equal(linear.dequantized(0, linear.rows), before[name].dequantized(0, linear.rows))
        assert same == (not name.endswith(("q_proj", "down_proj"))), name
    [said] = [note for note in merged.provenance.remarks if "rounded again" in note]
    assert said.startswith("The base is quantized, so 4 layers were rounded again")
    with_adapter = logits_with_adapter(tmp_path / "tuned")
    off, moved = logits(merged.path) - with_adapter, logits(packed.folder) - with_adapter
    assert np.abs(off).mean() < 0.7 * np.abs(moved).mean()


def logits_with_adapter(folder: Path) -> np.ndarray:
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(folder / "model", torch.float32), folder / "adapter").eval()
    with torch.inference_mode():
        return model(torch.arange(5, 30)[None]).logits[0].numpy()


def test_modules_that_were_trained_whole_are_taken_over(finetune, tiny_model, tmp_path, merge):
    finetune(tiny_model, training_args=LEARN, modules_to_save=("lm_head",))
    expected = peft_logits(tmp_path / "tuned")
    merged = merge(tmp_path / "tuned")
    assert json.loads((merged.path / "config.json").read_text())["tie_word_embeddings"] is False
    np.testing.assert_allclose(logits(merged.path), expected, atol=2e-3)


def test_an_adapter_of_another_base_is_refused(finetune, tiny_model, make_model, tmp_path, merge):
    finetune(tiny_model)
    wider = make_model("other", tensors=_wider(), intermediate_size=192)
    adapter_folder.write(tmp_path / "mixed", wider, {"adapter": tmp_path / "tuned/adapter"})
    with pytest.raises(coldpress.ColdpressError, match="cannot be put on its base") as caught:
        merge(tmp_path / "mixed")
    assert "another model" in caught.value.hint


def _wider():
    random = np.random.default_rng(3)
    shapes = {name: tensor.shape for name, tensor in weights().items()}
    grown = {name: tuple(192 if size == 128 else size for size in shape) for name, shape in shapes.items()}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in grown.items()}


def test_several_adapters_are_refused(finetune, tiny_model, tmp_path, merge):
    finetune(tiny_model)
    both = {"a": tmp_path / "tuned/adapter", "b": tmp_path / "tuned/adapter"}
    adapter_folder.write(tmp_path / "two", tiny_model, both)
    with pytest.raises(coldpress.ColdpressError, match="has 2 adapters: a, b"):
        merge(tmp_path / "two")
