"""Attention in blocks is attention: the textbook's sums, and transformers' logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from coldpress.networks.attention import attend_in_blocks, causal_attention
from tests.architectures import checkpoint


def textbook(query, key, value, scaling):
    """In float64, head by head and query by query."""
    query, key, value = (tensor.double().numpy() for tensor in (query, key, value))
    batch, heads, tokens, _ = query.shape
    found = np.zeros((batch, tokens, heads, value.shape[-1]))
    for sample, head, token in np.ndindex(batch, heads, tokens):
        own = head * key.shape[1] // heads
        scores = key[sample, own, : token + 1] @ query[sample, head, token] * scaling
        shares = np.exp(scores - scores.max())
        found[sample, token, head] = shares @ value[sample, own, : token + 1] / shares.sum()
    return found


@pytest.mark.parametrize("tokens", [1, 63, 64, 130])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_every_query_meets_the_keys_up_to_its_own(tokens, heads, shared, dtype, tolerance):
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, tokens, count, size).to(dtype).transpose(1, 2)
        for count, size in ((heads, 16), (shared, 16), (shared, 24))
    )
    found = causal_attention(query, key, value, 0.2)
    assert found.shape == (2, tokens, heads, 24)
    np.testing.assert_allclose(found.float(), textbook(query, key, value, 0.2), atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "phi3", "qwen3", "mistral"])
def test_a_network_says_the_same(name, dtype, tmp_path):
    """Of Gemma and Mistral the text is longer than what their layers look back on, so that these have masks."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint(name, tmp_path / name).folder, dtype=dtype).eval()
    ids = torch.arange(80).remainder(50).reshape(2, 40)
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits.float()
        attend_in_blocks(model)
        found = model(ids, use_cache=False).logits.float()
    assert (found - expected).abs().mean() <= (0 if dtype == torch.float32 else 0.01) * expected.std()
