"""The streamed reference gives what transformers gives, and leaves nothing in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from coldpress.errors import ColdpressError
from coldpress.networks.reference import Reference
from tests.architectures import checkpoint

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama, tied": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama, untied": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "qwen2, with biases": lambda: transformers.Qwen2Config(**SHAPE),
    "gemma3, scaled embedding": lambda: transformers.Gemma3TextConfig(**SHAPE, head_dim=16),
    "gemma2, capped logits": lambda: transformers.Gemma2Config(**SHAPE, head_dim=16),
    "gpt_neox, renamed head": lambda: transformers.GPTNeoXConfig(
        **{name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
    ),
}


def save_model(config: transformers.PreTrainedConfig, folder: Path, **how) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder, **how)
    return model


def ordinary_logits(model, window: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(window)[None], use_cache=False).logits[0].float().numpy()


def some_windows() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 200, length) for length in (24, 24, 9)]


@pytest.mark.parametrize("name", CONFIGS)
def test_streamed_logits_are_those_of_transformers(name, tmp_path):
    model = save_model(CONFIGS[name](), tmp_path)
    reference = Reference(tmp_path)
    assert reference.streamed
    windows = some_windows()
    for window, logits in zip(windows, reference.logits(windows), strict=True):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, ordinary_logits(model, window), atol=1e-5)
    assert all(parameter.device.type == "meta" for parameter in reference._model.parameters())


def test_sharded_checkpoints_are_read(tmp_path):
    model = save_model(CONFIGS["llama, untied"](), tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    window = some_windows()[0]
    (logits,) = Reference(tmp_path).logits([window])
    np.testing.assert_allclose(logits, ordinary_logits(model, window), atol=1e-5)


@pytest.mark.parametrize("name", ["llama, tied", "gemma3, scaled embedding"])
def test_bfloat16_weights_compute_in_float32(name, tmp_path):
    save_model(CONFIGS[name](), tmp_path / "float")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=torch.bfloat16)
    whole.save_pretrained(tmp_path / "bf16")
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.float32).eval()
    window = some_windows()[0]
    (logits,) = Reference(tmp_path / "bf16").logits([window])
    np.testing.assert_allclose(logits, ordinary_logits(expected, window), atol=1e-5)


def test_a_model_that_reads_parameters_of_other_modules_is_loaded_whole(tmp_path):
    model = checkpoint("jamba", tmp_path).model
    reference, window = Reference(tmp_path), some_windows()[0]
    (logits,) = reference.logits([window])
    assert not reference.streamed
    np.testing.assert_allclose(logits, ordinary_logits(model, window), atol=1e-5)


def test_hidden_gives_the_outputs_of_named_modules(tmp_path):
    model = save_model(CONFIGS["llama, tied"](), tmp_path)
    window = some_windows()[2]
    outputs = Reference(tmp_path).hidden(window, ["model.layers.1.mlp.down_proj", "lm_head", "no.such.module"])
    assert set(outputs) == {"model.layers.1.mlp.down_proj", "lm_head"}
    assert outputs["model.layers.1.mlp.down_proj"].shape == (9, 64)
    np.testing.assert_allclose(outputs["lm_head"], ordinary_logits(model, window), atol=1e-5)


def test_greedy_answers_are_those_of_generate(tmp_path):
    model = save_model(CONFIGS["llama, tied"](), tmp_path)
    prompt = some_windows()[2]
    settings = transformers.GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = model.generate(torch.tensor(prompt)[None], generation_config=settings)
    assert Reference(tmp_path).greedy(prompt.tolist(), 6) == expected[0, len(prompt) :].tolist()


def test_a_folder_without_safetensors_is_refused(tmp_path):
    CONFIGS["llama, tied"]().save_pretrained(tmp_path)
    with pytest.raises(ColdpressError, match="no safetensors"):
        Reference(tmp_path)
