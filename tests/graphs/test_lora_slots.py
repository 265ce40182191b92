"""A graph with LoRA slots is the base without an adapter, and PEFT's model with one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.graphs import adapter_file
from coldpress.graphs.lora_metadata import read_slots
from coldpress.graphs.scoring import Decoder
from coldpress.models import adapter_folder, peft
from coldpress.models.model import Model
from coldpress.models.provenance import Provenance
from coldpress.parts import Context
from coldpress.passes.attach_adapters import AttachAdapters
from coldpress.passes.press import Press
from coldpress.target import Target
from tests.adapters import make_adapter

IDS = np.arange(7, 31)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def press(model: Model, folder: Path, **options) -> Model:
    folder.mkdir(parents=True)
    return Press(**{"logits": "all", "accuracy_level": 0, **options}).run(model, Context(folder))


def attached(folder: Path, base: Path, **adapters: Path) -> Model:
    adapter_folder.write(folder, base, adapters)
    return Model(folder, "adapter", "", Provenance(attached=tuple(sorted(adapters))))


def peft_logits(model) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(torch.tensor(IDS)[None]).logits[0].float().numpy()


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", [*ALL, "lm_head"]),
        ("smollm2", ["q_proj", "v_proj", "down_proj", "lm_head"]),
        pytest.param("qwen2", ALL, marks=pytest.mark.full),
        pytest.param("qwen3", ALL, marks=pytest.mark.full),
        ("phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        pytest.param("gemma3", ALL, marks=pytest.mark.full),
        pytest.param("gpt2", ["c_attn", "c_proj"], marks=pytest.mark.full),
        pytest.param("gpt_neox", ["dense"], marks=pytest.mark.full),
        ("llama_padded", ["k_proj", "up_proj"]),
    ],
)
def test_float_graphs_equal_the_base_without_and_peft_with_an_adapter(tiny, pressed, tmp_path, name, targets):
    source = tiny(name)
    tuned = make_adapter(source.model, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=targets)
    made = press(attached(tmp_path / "both", source.folder, a=tmp_path / "adapter"), tmp_path / "p", precision="fp32")
    decoder = Decoder(made.path)
    base = Decoder(pressed(name, precision="fp32").path).logits(IDS)
    # a bias in front of the residual is added in another order, as the runtime fuses it with the norm only without a
    # slot
    np.testing.assert_allclose(decoder.logits(IDS), base, rtol=0, atol=1e-5 if name.startswith("gpt") else 0)
    found, expected = decoder.logits(IDS, made.path / "adapter_weights.onnx_adapter"), peft_logits(tuned)
    assert np.abs(found - expected).max() < 1e-3 * expected.std()
    assert np.abs(found - decoder.logits(IDS)).max() > 0.1 * expected.std()


@pytest.mark.parametrize(
    "options", [{"precision": "int4"}, {"precision": "int8"}, {"precision": "int4", "accuracy_level": 4}]
)
def test_the_weights_of_a_quantized_base_stay_to_the_bit(tiny, pressed, tmp_path, options):
    source = tiny("llama")
    make_adapter(source.model, tmp_path / "adapter", r=4, target_modules=ALL)
    made = press(attached(tmp_path / "both", source.folder, a=tmp_path / "adapter"), tmp_path / "p", **options)
    plain = pressed("llama", **options)
    assert (made.path / "model.onnx.data").read_bytes() == (plain.path / "model.onnx.data").read_bytes()
    np.testing.assert_array_equal(Decoder(made.path).logits(IDS), Decoder(plain.path).logits(IDS))


@pytest.mark.parametrize("name", ["llama", "smollm2"])
def test_a_head_that_sees_the_last_position_only_has_its_slot_there(tiny, tmp_path, name):
    source = tiny(name)
    tuned = make_adapter(source.model, tmp_path / "adapter", r=4, target_modules=["q_proj", "lm_head"])
    both = attached(tmp_path / "both", source.folder, a=tmp_path / "adapter")
    made = press(both, tmp_path / "p", precision="fp32", logits="last")
    found, expected = Decoder(made.path).logits(IDS, made.path / "adapter_weights.onnx_adapter"), peft_logits(tuned)
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


def test_adapters_of_other_ranks_and_modules_share_one_graph(tiny, tmp_path):
    source = tiny("llama")
    models = {
        "large": make_adapter(source.model, tmp_path / "large", r=8, target_modules=["q_proj", "up_proj"]),
        "small": make_adapter(source.model, tmp_path / "small", r=2, target_modules=["v_proj", "o_proj"]),
        "product": make_adapter(source.model, tmp_path / "product", "LoHa", r=2, target_modules=["k_proj"]),
    }
    both = attached(tmp_path / "both", source.folder, **{name: tmp_path / name for name in models})
    made = press(both, tmp_path / "p", precision="fp32")
    decoder = Decoder(made.path)
    for name, model in models.items():
        expected = peft_logits(model)
        assert np.abs(decoder.logits(IDS, made.path / f"{name}.onnx_adapter") - expected).max() < 1e-3 * expected.std()
    assert [one.ranks for one in made.provenance.adapters] == [(8,), (4,), (2,)]
    assert {slot.name.rpartition(".")[2] for slot in read_slots(made.path / "model.onnx")} == {
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
    }


def test_layers_that_the_graph_takes_apart_have_no_slot(tiny, tmp_path):
    source = tiny("gpt_neox")  # its rows are query, key and value of one head after the other
    make_adapter(source.model, tmp_path / "adapter", r=2, target_modules=["query_key_value"])
    with pytest.raises(ColdpressError, match=r"query_key_value', which is no matrix product of its own"):
        press(attached(tmp_path / "both", source.folder, a=tmp_path / "adapter"), tmp_path / "p", precision="fp32")


def test_what_is_wrong_with_adapters_is_said_before_any_work(tiny, tmp_path):
    llama = Model(tiny("llama").folder, "hf", "")
    for paths, said in (
        ((), "no adapter was named"),
        ((str(tmp_path / "nowhere"),), "is no folder"),
        ((str(llama.path),), "no adapter_config.json"),
    ):
        with pytest.raises(ColdpressError, match=said):
            AttachAdapters(paths).check(llama, Target())
    make_adapter(tiny("gpt2").model, tmp_path / "other", r=2, target_modules=["c_attn"])
    both = attached(tmp_path / "both", llama.path, other=tmp_path / "other")
    with pytest.raises(ColdpressError, match="does not have: transformer"):
        Press().check(both, Target())


def test_an_adapter_that_diverged_is_refused(tiny, tmp_path):
    from safetensors.numpy import load_file, save_file

    make_adapter(tiny("llama").model, tmp_path / "adapter", r=2, target_modules=["o_proj"])
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(ColdpressError, match=r"o_proj.* hold NaN or infinity"):
        adapter_file.by_modules(peft.read(tmp_path / "adapter").layers, "float32")


def test_adapter_files_of_other_models_are_refused(tiny, tmp_path):
    source = tiny("llama")
    make_adapter(source.model, tmp_path / "adapter", r=4, target_modules=["q_proj"])
    made = press(attached(tmp_path / "both", source.folder, a=tmp_path / "adapter"), tmp_path / "p", precision="fp32")
    slots = read_slots(made.path / "model.onnx")
    adapter_file.check_fits(made.path / "adapter_weights.onnx_adapter", slots, made.path)
    adapter_file.write(tmp_path / "x.onnx_adapter", {"other.lora_A.weight": np.zeros((4, 2), np.float32)})
    with pytest.raises(ColdpressError, match=r"'other\.lora_A\.weight', which is no input"):
        adapter_file.check_fits(tmp_path / "x.onnx_adapter", slots, made.path)
    adapter_file.write(tmp_path / "y.onnx_adapter", {slots[0].a: np.zeros((4, 2), np.float32)})
    with pytest.raises(ColdpressError, match="does not fit"):
        adapter_file.check_fits(tmp_path / "y.onnx_adapter", slots, made.path)
    (tmp_path / "z.onnx_adapter").write_bytes(b"no adapter")
    with pytest.raises(ColdpressError, match="is no adapter file"):
        adapter_file.check_fits(tmp_path / "z.onnx_adapter", slots, made.path)
    with pytest.raises(ColdpressError, match="does not exist"):
        adapter_file.check_fits(tmp_path / "none.onnx_adapter", slots, made.path)
