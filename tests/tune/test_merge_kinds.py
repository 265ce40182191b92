"""Every kind of adapter that PEFT can merge gives, merged, the logits of PEFT's own network; the others are refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coldpress
from coldpress.errors import ColdpressError
from coldpress.networks.adapted_reference import AdaptedReference
from coldpress.tune.merge import merge
from tests.architectures import Tiny, checkpoint

IDS = torch.arange(5, 45)[None]
QV = ["q_proj", "v_proj"]
#: name -> kind of PEFT and its settings, for a llama
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rank and alpha patterns": (
        "Lora",
        {"target_modules": QV, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    ),
    "rslora on some layers": ("Lora", {"target_modules": QV, "use_rslora": True, "layers_to_transform": [1]}),
    "excluded modules": ("Lora", {"target_modules": "all-linear", "exclude_modules": ["o_proj"]}),
    "biases": ("Lora", {"target_modules": QV, "bias": "all"}),
    "dora": ("Lora", {"target_modules": QV, "use_dora": True}),
    "pissa": ("Lora", {"target_modules": QV, "init_lora_weights": "pissa"}),
    "parameters": ("Lora", {"target_modules": [], "target_parameters": ["mlp.gate_proj.weight"]}),
    "embedding": ("Lora", {"target_modules": ["q_proj", "embed_tokens"]}),
    "head": ("Lora", {"target_modules": ["q_proj", "lm_head"]}),
    "embedding and head": ("Lora", {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}),
    "whole head": ("Lora", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "whole embedding": ("Lora", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "tokens": ("Lora", {"target_modules": QV, "trainable_token_indices": [5, 6]}),
    "other tokens in the head": (
        "Lora",
        {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [5, 6], "lm_head": [5, 7]}},
    ),
    "loha": ("LoHa", {"target_modules": QV}),
    "lokr": ("LoKr", {"target_modules": QV}),
    "vera": ("Vera", {"target_modules": ["q_proj", "o_proj"]}),
    "ia3": ("IA3", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "oft": ("OFT", {"target_modules": QV, "r": 4, "oft_block_size": 0}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "whole norms": ("Lora", {"target_modules": QV, "modules_to_save": ["input_layernorm", "norm"]}),
    "whole embedding and head": ("Lora", {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "dora of an embedding": ("Lora", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "tied tokens": ("Lora", {"target_modules": QV, "trainable_token_indices": [5], "ensure_weight_tying": True}),
    "biases of the layers": ("Lora", {"target_modules": QV, "bias": "lora_only"}),
    "boft": ("BOFT", {"target_modules": QV, "boft_block_size": 4}),
    "hra": ("HRA", {"target_modules": QV}),
    "fourierft": ("FourierFT", {"target_modules": QV, "n_frequency": 50}),
    "layer norms": ("LNTuning", {"target_modules": ["input_layernorm"]}),
    "miss": ("Miss", {"target_modules": QV}),
    "vblora": ("VBLoRA", {"target_modules": ["q_proj", "o_proj"], "num_vectors": 8, "vector_length": 16}),
    "shira": ("Shira", {"target_modules": QV}),
    "c3a": ("C3A", {"target_modules": QV, "block_size": 16}),
    "road": ("Road", {"target_modules": QV, "group_size": 32}),
    "only tokens": ("TrainableTokens", {"token_indices": [4, 9]}),
}
OTHER_BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "transposed weights": ("gpt2", "Lora", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "transposed dora": ("gpt2", "Lora", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "biases that are there": ("qwen2", "Lora", {"target_modules": QV, "bias": "lora_only"}),
    "biases of the products": ("qwen2", "Lora", {"target_modules": QV, "lora_bias": True}),
    "experts": (
        "qwen3_moe",
        "Lora",
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
}
_WITHOUT_RANK = ("IA3", "OFT", "BOFT", "FourierFT", "LNTuning", "C3A", "Road", "TrainableTokens")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, Tiny] = {}

    def base(name: str) -> Tiny:
        if name not in known:
            known[name] = checkpoint(name, tmp_path_factory.mktemp(name))
        return known[name]

    return base


def trained(base: Any, folder: Path, kind: str, settings: dict[str, Any], more_tokens: int = 0) -> np.ndarray:
    """Save an adapter whose every trained number matters; gives the logits of PEFT's network."""
    import peft

    model = copy.deepcopy(base)
    if more_tokens:  # PEFT saves embeddings where the base, by its name, has other ones
        model.resize_token_embeddings(base.config.vocab_size + more_tokens)
    given = {"task_type": "CAUSAL_LM", **({} if kind in _WITHOUT_RANK else {"r": 4}), **settings}
    network = peft.get_peft_model(model, getattr(peft, f"{kind}Config")(**given)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += (torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype)
    with torch.no_grad():
        logits = network(input_ids=IDS).logits.numpy()[0]
    network.save_pretrained(folder)
    return logits


def merged(base: Path, adapter: Path, output: Path) -> Any:
    import transformers

    output.mkdir()
    merge(base, adapter, output, lambda *_: None)
    return transformers.AutoModelForCausalLM.from_pretrained(output).eval()


def assert_same(model: Any, expected: np.ndarray) -> None:
    with torch.no_grad():
        found = model(IDS).logits.numpy()[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


#: those for which it matters whether the head is tied
_OF_VOCABULARY = ("embedding", "head", "tokens")


@pytest.mark.parametrize("base", ["llama", "smollm2"])
@pytest.mark.parametrize("name", [name for name in KINDS if any(word in name for word in _OF_VOCABULARY)])
def test_embeddings_heads_and_tokens_are_those_of_peft(name: str, base: str, bases: Any, tmp_path: Path):
    expected = trained(bases(base).model, tmp_path / "adapter", *KINDS[name])
    assert_same(merged(bases(base).folder, tmp_path / "adapter", tmp_path / "merged"), expected)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in KINDS if not any(word in name for word in _OF_VOCABULARY)),
        *(pytest.param(name, marks=pytest.mark.full) for name in MORE),
    ],
)
def test_logits_are_those_of_peft(name: str, bases: Any, tmp_path: Path):
    base = "smollm2"
    expected = trained(bases(base).model, tmp_path / "adapter", *({**KINDS, **MORE}[name]))
    assert_same(merged(bases(base).folder, tmp_path / "adapter", tmp_path / "merged"), expected)


@pytest.mark.parametrize("name", OTHER_BASES)
def test_other_bases(name: str, bases: Any, tmp_path: Path):
    base, kind, settings = OTHER_BASES[name]
    expected = trained(bases(base).model, tmp_path / "adapter", kind, settings)
    assert_same(merged(bases(base).folder, tmp_path / "adapter", tmp_path / "merged"), expected)


@pytest.mark.parametrize("base", ["llama", "smollm2"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        pytest.param({"trainable_token_indices": [320, 321]}, marks=pytest.mark.full),
    ],
)
def test_more_tokens_than_the_base_has(base: str, settings: dict[str, Any], bases: Any, tmp_path: Path):
    import transformers

    adapter = tmp_path / "adapter"
    model = transformers.AutoModelForCausalLM.from_pretrained(bases(base).folder).eval()
    expected = trained(model, adapter, "Lora", {"target_modules": QV, **settings}, more_tokens=3)
    (adapter / "tokenizer_config.json").write_text("{}")
    assert_same(merged(bases(base).folder, adapter, tmp_path / "merged"), expected)
    assert json.loads((tmp_path / "merged/config.json").read_text())["vocab_size"] == 323
    assert (tmp_path / "merged/tokenizer_config.json").read_text() == "{}"


def test_a_tied_head_with_an_adapter_is_untied_and_the_embedding_stays(bases: Any, tmp_path: Path):
    tied = bases("smollm2")
    trained(tied.model, tmp_path / "adapter", "Lora", {"target_modules": ["lm_head"]})
    model = merged(tied.folder, tmp_path / "adapter", tmp_path / "merged")
    assert model.config.tie_word_embeddings is False
    before = tied.model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert not torch.allclose(model.get_output_embeddings().weight, before)


def test_peft_s_network_is_streamed_for_the_comparison(bases: Any, tmp_path: Path):
    for name, base in (("dora", "llama"), ("embedding", "smollm2"), ("tokens", "smollm2"), ("whole head", "llama")):
        expected = trained(bases(base).model, tmp_path / name, *KINDS[name])
        reference = AdaptedReference(bases(base).folder, tmp_path / name)
        [found] = reference.logits([IDS[0].numpy()])
        assert reference.streamed
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_classifier_is_merged_with_its_head(bases: Any, tmp_path: Path):
    import transformers

    base = bases("llama")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=3, pad_token_id=0)
    settings = {"target_modules": QV, "task_type": "SEQ_CLS"}
    expected = trained(model.eval(), tmp_path / "adapter", "Lora", settings)
    (tmp_path / "merged").mkdir()
    merge(base.folder, tmp_path / "adapter", tmp_path / "merged", lambda *_: None)
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        np.testing.assert_allclose(found(IDS).logits.numpy()[0], expected, rtol=1e-4, atol=1e-5)


def test_a_file_for_which_the_base_has_no_place_is_refused(bases: Any, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    trained(bases("llama").model, tmp_path / "adapter", "Lora", {"target_modules": QV})
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.score.weight": np.ones((2, 64), np.float32)}, file)
    with pytest.raises(ColdpressError, match=r"has '.*score\.weight', for which its base has no place"):
        merged(bases("llama").folder, tmp_path / "adapter", tmp_path / "merged")
    del tensors[min(tensors)]
    save_file(tensors, file)
    with pytest.raises(ColdpressError, match="it has no tensor"):
        merged(bases("llama").folder, tmp_path / "adapter", tmp_path / "again")


def test_a_merge_by_path_is_compared_with_peft_and_pressed_after_attaching(tiny_model: Path, tmp_path: Path):
    """What serving refuses names a command; that command, and the same passes in a workflow, give PEFT's logits."""
    from transformers import AutoModelForCausalLM

    adapter = tmp_path / "adapter"
    trained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter, "Lora", {"target_modules": QV, "use_dora": True})
    cache = {"cache_dir": tmp_path / "cache"}
    for refuse in (coldpress.plan, coldpress.optimize):
        with pytest.raises(ColdpressError, match="is a DoRA") as caught:
            refuse(tiny_model, adapter_path=(str(adapter),))
    assert "run-pass merge_adapter_weights -m BASE --adapter_path ADAPTER" in caught.value.hint
    workflow = {
        "model": str(tiny_model),
        "passes": [
            {"type": "attach_adapters", "parameters": {"adapter_path": [str(adapter)]}},
            {"type": "merge_adapter_weights"},
            {"type": "press", "parameters": {"precision": "fp32"}},
        ],
        "output": str(tmp_path / "out"),
        "metrics": [],
    }
    report = coldpress.run(workflow, **cache)
    assert report.data["verdict"] == "verified"
    assert report.data["quality"]["merging"]["kl"] < 1e-6


def test_biases_of_products_that_have_no_place_in_the_base_are_refused_with_a_way_that_works(
    bases: Any, tmp_path: Path
):
    base = bases("llama")
    trained(base.model, tmp_path / "adapter", "Lora", {"target_modules": QV, "lora_bias": True})
    with pytest.raises(ColdpressError, match="the base layer has no bias") as caught:
        merged(base.folder, tmp_path / "adapter", tmp_path / "merged")
    assert "train it again without lora_bias" in (caught.value.hint or "")
    trained(base.model, tmp_path / "without", "Lora", {"target_modules": QV})
    merged(base.folder, tmp_path / "without", tmp_path / "works")
