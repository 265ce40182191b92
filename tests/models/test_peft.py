"""What is read of a PEFT folder is what PEFT adds to the weights."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.models import adapter_folder, peft
from coldpress.models.adapter_base import Base, on_base
from tests.adapters import make_adapter
from tests.architectures import checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return checkpoint("llama", tmp_path_factory.mktemp("llama"))


def rewritten(folder, **changes):
    """Change an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Lora", {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}),
        ("Lora", {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ATTENTION}),
        (
            "Lora",
            {
                "r": 4,
                "target_modules": [*ATTENTION, "down_proj"],
                "rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 8},
                "alpha_pattern": {"down_proj": 5},
            },
        ),
        ("LoHa", {"r": 3, "alpha": 5, "target_modules": [*ATTENTION, "up_proj"]}),
        ("LoKr", {"r": 2, "alpha": 5, "target_modules": [*ATTENTION, "up_proj"]}),
        ("LoKr", {"r": 2, "alpha": 5, "target_modules": ["down_proj"], "decompose_both": True}),
        ("LoKr", {"r": 64, "alpha": 5, "target_modules": ["v_proj"], "decompose_factor": 4}),
    ],
)
def test_deltas_are_those_of_peft(llama, tmp_path, kind, settings):
    model = make_adapter(llama.model, tmp_path, kind, **settings)
    layers = on_base(peft.read(tmp_path), Base.read(llama.folder))
    tuned = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(layers) == set(tuned)
    for name, module in tuned.items():
        np.testing.assert_allclose(
            layers[name].delta(), module.get_delta_weight("default").detach().numpy(), rtol=1e-4, atol=1e-5
        )
        a, b = layers[name].factors()
        assert a.shape == (layers[name].inputs, layers[name].rank)
        assert b.shape == (layers[name].rank, layers[name].outputs)


def test_an_adapter_for_separate_layers_fits_fused_ones_and_the_reverse(llama, tmp_path):
    fused = checkpoint("phi3", tmp_path / "phi3")
    make_adapter(llama.model, tmp_path / "apart", r=4, target_modules=["q_proj", "v_proj", "gate_proj"])
    make_adapter(fused.model, tmp_path / "fused", r=4, target_modules=["qkv_proj", "gate_up_proj"])
    apart = peft.read(tmp_path / "apart")

    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)  # products of other sizes round otherwise
    on_fused = on_base(apart, Base.read(fused.folder))
    deltas = {name: layer.delta() for name, layer in apart.layers.items()}
    first = "model.layers.0."
    expected = [deltas[f"{first}self_attn.q_proj"], np.zeros((32, 64)), deltas[f"{first}self_attn.v_proj"]]
    same(on_fused[f"{first}self_attn.qkv_proj"].delta(), np.concatenate(expected))
    expected = [deltas[f"{first}mlp.gate_proj"], np.zeros((96, 64))]
    same(on_fused[f"{first}mlp.gate_up_proj"].delta(), np.concatenate(expected))

    on_apart = on_base(peft.read(tmp_path / "fused"), Base.read(llama.folder))
    whole = peft.read(tmp_path / "fused").layers[f"{first}self_attn.qkv_proj"].delta()
    same(on_apart[f"{first}self_attn.k_proj"].delta(), whole[64:96])
    assert f"{first}mlp.up_proj" in on_apart


@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
def test_transposed_weights_and_tied_heads(name, tmp_path):
    tiny = checkpoint(name, tmp_path / name)
    targets = ["c_attn", "c_proj"] if name == "gpt2" else ["q_proj", "lm_head"]
    make_adapter(tiny.model, tmp_path / "adapter", r=4, target_modules=targets)
    layers = on_base(peft.read(tmp_path / "adapter"), Base.read(tiny.folder))
    assert any(module.endswith(targets[0]) for module in layers)
    assert name == "gpt2" or layers["lm_head"].outputs == 320


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True, "target_modules": ["q_proj"]}, "DoRA"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "an embedding"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "biases of its own"),
    ],
)
def test_what_is_more_than_low_rank_is_refused_with_the_way_out(llama, tmp_path, settings, said):
    make_adapter(llama.model, tmp_path, r=4, **settings)
    with pytest.raises(ColdpressError, match=said) as caught:
        peft.read(tmp_path).layers  # noqa: B018
    assert "merge_adapter_weights" in caught.value.hint
    assert ("train it again without lora_bias" in caught.value.hint) == ("lora_bias" in settings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "VERA"}, "of the kind VERA"),
        ({"init_lora_weights": "pissa_niter_4"}, "takes a part out of its base"),
        ({"r": 8}, "rank 8, its tensors have 4"),
    ],
)
def test_a_configuration_that_is_not_of_these_weights(llama, tmp_path, changes, said):
    make_adapter(llama.model, tmp_path, r=4, target_modules=["q_proj"])
    rewritten(tmp_path, **changes)
    with pytest.raises(ColdpressError, match=said):
        peft.read(tmp_path).layers  # noqa: B018


def test_folders_that_are_no_adapter(llama, tmp_path):
    with pytest.raises(ColdpressError, match="has no adapter_config"):
        peft.read(llama.folder)
    make_adapter(llama.model, tmp_path, r=4, target_modules=["q_proj"])
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ColdpressError, match="has no adapter_model") as caught:
        peft.read(tmp_path)
    assert "pickle" in caught.value.hint
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ColdpressError, match="not valid JSON"):
        peft.read(tmp_path)


def test_an_adapter_of_another_base(llama, tmp_path):
    other = checkpoint("gpt2", tmp_path / "gpt2")
    make_adapter(llama.model, tmp_path / "adapter", r=4, target_modules=["q_proj", "k_proj"])
    adapter = peft.read(tmp_path / "adapter")
    with pytest.raises(ColdpressError, match=r"does not have: .*q_proj.* and 1 more") as caught:
        on_base(adapter, Base.read(other.folder))
    assert "c_attn" in caught.value.hint
    wider = checkpoint("llama", tmp_path / "wider", hidden_size=96)
    with pytest.raises(ColdpressError, match=r"for a weight \[32, 64\], in .* it is \[48, 96\]"):
        on_base(adapter, Base.read(wider.folder))


def test_a_base_with_its_adapters_is_written_and_read(llama, tmp_path):
    for name in ("travel", "emotion"):
        make_adapter(llama.model, tmp_path / name / "adapter", r=4, target_modules=["q_proj"])
    folders = adapter_folder.named([tmp_path / "travel" / "adapter", tmp_path / "emotion" / "adapter"])
    both = adapter_folder.write(tmp_path / "both", llama.folder, folders)
    assert set(both.adapters) == {"travel", "emotion"} == set(adapter_folder.read(tmp_path / "both").adapters)
    one = adapter_folder.write(tmp_path / "one", llama.folder, {"travel": tmp_path / "travel" / "adapter"})
    assert one.adapters == {"one": tmp_path / "one" / "adapter"}
    assert Base.read(one.base).shapes == Base.read(llama.folder).shapes
    assert peft.read(one.adapters["one"]).layers.keys() == peft.read(folders["travel"]).layers.keys()

    with pytest.raises(ColdpressError, match="two adapters have the name 'travel'"):
        adapter_folder.named([tmp_path / "travel", tmp_path / "both" / "adapter" / "travel"])
    with pytest.raises(ColdpressError, match="no base with adapters"):
        adapter_folder.read(tmp_path / "travel")
