"""Configurations that were swept are pressed at once; others are tried on a tiny model, and refused if that is
wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from coldpress.errors import ColdpressError
from coldpress.graphs import trust
from coldpress.graphs.trial import try_out
from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.target import Target
from tests.architectures import Tiny, checkpoint

ROOT = Path(__file__).parents[2]
#: settings of a tiny Llama, in the order of what they ask of a kernel or of mobius
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
RIGHT: dict[str, dict[str, Any]] = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "heads of 12": {"head_dim": 12},
    "heads of 24, one of keys": {"head_dim": 24, "num_key_value_heads": 1},
    "yarn with a factor of attention": {"rope_parameters": {**YARN, "attention_factor": 1.3, "truncate": False}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    "an older spelling": {
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "torch_dtype": "float16",
    },
    "clipped": {"model_type": "olmo", "architectures": ["OlmoForCausalLM"], "clip_qkv": 0.3},
    "rotated in windows only": {
        "model_type": "exaone4",
        "architectures": ["Exaone4ForCausalLM"],
        "sliding_window": 128,
        "sliding_window_pattern": 4,
        "num_hidden_layers": 4,
    },
    "a width without a whole root": {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 40},
}
WRONG: dict[str, dict[str, Any]] = {
    "rotated in part": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "a decoder of a pair": {"model_type": "bart", "architectures": ["BartForCausalLM"], "d_model": 64},
    "a decoder that mobius takes for an encoder": {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
    "an architecture that nobody knows": {"model_type": "nothing_like_it"},
}


def write(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **settings}))
    return folder


@pytest.mark.parametrize("name", RIGHT)
def test_what_comes_out_as_transformers_has_it(name: str, tmp_path: Path) -> None:
    verdict = try_out(write(tmp_path, RIGHT[name]))
    assert verdict.is_right, verdict


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_is_told_with_a_reason(name: str, tmp_path: Path) -> None:
    verdict = try_out(write(tmp_path, WRONG[name]))
    assert not verdict.is_right and verdict.why


def test_a_wrong_one_is_refused_before_work_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))
    source: Tiny = checkpoint("llama", tmp_path / "source", **WRONG["rotated in part"])
    model = Model(source.folder, "hf", "key")
    with pytest.raises(
        ColdpressError, match=r"LlamaForCausalLM .* cannot be pressed: its graph computes something else"
    ):
        Press(precision="fp32").check(model, Target())
    trust._verdict.cache_clear()
    monkeypatch.setattr(trust, "_try", lambda *request: pytest.fail("it is tried again"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ColdpressError, match="cannot be pressed"):
        Press(precision="fp32").run(model, Context(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_nothing_is_tried_of_what_was_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_try", lambda *request: pytest.fail("it is tried"))
    trust.require_right(
        write(tmp_path, {"mlp_bias": True, "rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "bfloat16"})
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"a_setting_of_tomorrow": True},
        {"hidden_act": "an_activation_of_tomorrow"},
        {"rope_scaling": {"rope_type": "a_rotation_of_tomorrow"}},
        {"architectures": ["LlamaForTomorrow"]},
        {"architectures": None},
    ],
)
def test_a_setting_that_was_not_swept_is_tried(settings: dict[str, Any]) -> None:
    assert trust.is_swept(LLAMA)
    assert not trust.is_swept({**LLAMA, **settings})


def test_another_mobius_makes_no_use_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "version", lambda name: "9.9")
    assert not trust.is_swept(LLAMA)


@pytest.mark.full
def test_the_table_is_what_a_sweep_finds() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    import sweep

    for key, known in trust.swept()["classes"].items():
        assert sweep.swept(*key.split("/"))["right"] == known["right"], key
