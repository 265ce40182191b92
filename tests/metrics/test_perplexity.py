"""Perplexity agrees between a folder and its ONNX model, and with the definition."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from coldpress.data.texts import heldout
from coldpress.errors import ColdpressError
from coldpress.measuring.losses import perplexity, token_losses
from coldpress.metrics.perplexity import Perplexity
from coldpress.networks.shards import Shards


def test_source_and_float_model_have_the_same(pressed, tiny_source, context):
    metric = Perplexity(windows=3, tokens=48)
    source, model = metric.measure(tiny_source, context), metric.measure(pressed("fp32"), context)
    assert model["perplexity"] == pytest.approx(source["perplexity"], rel=1e-4)
    assert model["scored_tokens"] == 3 * 47


def test_the_source_is_what_transformers_loads(tiny_source, context, monkeypatch):
    before = Perplexity(windows=1, tokens=48).measure(tiny_source, context)
    monkeypatch.setattr(Shards, "tensor", lambda self, name: torch.zeros(self.shape(name)))
    assert Perplexity(windows=1, tokens=48).measure(tiny_source, context) == before


def test_a_model_that_knows_nothing_has_the_vocabulary():
    losses = token_losses(np.zeros((100, 50), np.float32), np.arange(100) % 50)
    assert len(losses) == 99
    assert perplexity([losses]) == pytest.approx(50, rel=1e-5)


def test_losses_are_those_of_the_next_token():
    logits = np.full((3, 4), -50, np.float32)
    logits[0, 2] = logits[1, 3] = 0
    assert token_losses(logits, np.array([1, 2, 3])).max() < 1e-6
    assert token_losses(logits, np.array([1, 2, 0]))[1] > 40


def test_an_unbounded_loss_is_infinite_and_nan_stays():
    assert perplexity([np.array([1e4])]) == math.inf
    assert math.isnan(perplexity([np.array([math.nan])]))


def test_own_files(tiny_source, context, tmp_path):
    text, rows = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("The kettle sang on the stove. " * 40)
    rows.write_text("\n".join(json.dumps({"text": f"Row {index} of the file.\u2028"}) for index in range(40)))
    numbers = Perplexity(windows=4, tokens=32, files=(str(text), str(rows))).measure(tiny_source, context)
    assert numbers["scored_tokens"] == 4 * 31


@pytest.mark.parametrize("line", ["{not json", '{"txt": "a"}', '["a"]'])
def test_a_broken_line_is_named(line, tiny_source, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(ColdpressError, match=r"rows\.jsonl, line 3"):
        heldout.windows(tiny_source.path, 16, 2, [file])


def test_windows_take_turns_and_do_not_overlap(tiny_source):
    tokenizer = heldout.load_tokenizer(tiny_source.path)
    found = heldout.windows(tiny_source.path, 32, 6)
    assert [len(window) for window in found] == [32] * 6
    assert all(window.dtype == np.int64 for window in found)
    prose = tokenizer.encode(heldout.texts()[0]).ids
    assert found[0].tolist() == prose[:32]
    assert found[3].tolist() == prose[32:64]


@pytest.mark.parametrize("says_so", ["tokenizer.json", "tokenizer_config.json"])
def test_windows_start_with_bos_if_the_tokenizer_adds_it(says_so, tiny_source, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = heldout.load_tokenizer(tiny_source.path)
    if says_so == "tokenizer.json":
        tokenizer.post_processor = TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 0)])
    else:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<start>", "add_bos_token": True}))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = heldout.windows(tmp_path, 32, 2)
    assert [(len(window), window[0]) for window in found] == [(32, 0), (32, 0)]
    assert 0 not in found[0][1:]
