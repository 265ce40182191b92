"""The positions that a graph gives logits for, and what onnxruntime-genai makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime_genai as og
import pytest

from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.models.model import Model
from coldpress.passes.press import Press
from coldpress.target import Target
from tests.graphs.test_architectures import CLOSE, decode, session

Pressed = Callable[..., Model]


@pytest.mark.parametrize("name", ["gemma2", "smollm2"])
def test_logits_as_speculation_needs_them(name: str, pressed: Pressed) -> None:
    """All of a step of up to 17 tokens; in a longer step each position has those of the last."""
    ids = np.random.default_rng(3).integers(3, 320, (1, 35))
    models = [pressed(name, precision="fp32", **logits) for logits in ({}, {"logits": "speculation"})]
    every, drafts = (decode(session(model.path / "model.onnx"), ids, cuts=(18,)) for model in models)
    assert np.abs(drafts[:, 18:] - every[:, 18:]).max() < CLOSE
    assert np.abs(drafts[:, :18] - every[:, 17:18]).max() < CLOSE
    whole, scored = (Decoder(model.path, 1).logits(ids[0]) for model in models)
    assert np.abs(scored - whole).max() < CLOSE, "a verification reads all positions of any graph"


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_onnxruntime_genai_speculates_with_them(name: str, pressed: Pressed) -> None:
    repeating = [5, 6, 7, 8, 9, 10] * 6
    answers = []
    for logits in ("all", "speculation"):
        model = og.Model(str(pressed(name, precision="fp32", logits=logits).path))
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(repeating) + 24, min_length=len(repeating) + 24, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(repeating)
        while not generator.is_done():
            generator.generate_next_token()
        answers.append(generator.get_sequence(0).tolist())
    assert answers[0] == answers[1]
    assert generator.get_speculative_stats()["draft_tokens_proposed"] > 0


def test_speculation_that_nothing_would_do_is_refused(pressed: Pressed) -> None:
    with pytest.raises(ColdpressError, match="use_ort_genai"):
        Press(logits="speculation", use_ort_genai=False).check(pressed("llama", precision="fp32"), Target())
