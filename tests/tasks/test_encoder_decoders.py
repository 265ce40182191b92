"""Encoder-decoders, captured as two graphs, pressed, verified, and searched with as transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coldpress
from coldpress.measuring.encoder_decoder import EncoderDecoder
from coldpress.networks.tiny import randomise
from coldpress.target import Target
from coldpress.workflow import Step, Workflow

pytestmark = pytest.mark.full  # torch.export takes half a minute a graph

SIZES = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "vocab_size": 320,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", "T5Config",
           {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 320,
            "decoder_start_token_id": 0}),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**SIZES, "max_position_embeddings": 128}),
    "marian": ("MarianMTModel", "MarianConfig",
               {**SIZES, "max_position_embeddings": 128, "pad_token_id": 0, "decoder_start_token_id": 0}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig",
                {**SIZES, "max_source_positions": 50, "max_target_positions": 64, "num_mel_bins": 16, "pad_token_id": 0,
                 "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "begin_suppress_tokens": None}),
}  # fmt: skip


def tiny(name: str, folder: Path) -> Any:
    import torch
    import transformers

    kind, settings, values = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, settings)(**values)).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


def pressed(source: Path, precision: str) -> dict[str, Any]:
    output = source.parent / precision
    workflow = Workflow(str(source), (Step("press", {"precision": precision}),), output=str(output), metrics=())
    return coldpress.run(workflow, cache_dir=source.parent / "cache").data


def asked(name: str) -> dict[str, Any]:
    import torch

    random = np.random.default_rng(1)
    if name == "whisper":
        return {"input_features": torch.tensor(random.standard_normal((3, 16, 100)), dtype=torch.float32)}
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.tensor(random.integers(3, 320, (3, 17))), "attention_mask": mask}


def test_positions_that_no_checkpoint_holds_are_missed_by_name(tmp_path):
    """Marian computes them when it is made."""
    tiny("marian", tmp_path / "source")
    with pytest.raises(coldpress.ColdpressError, match=r"no tensor for 'model.encoder.embed_positions.weight'"):
        pressed(tmp_path / "source", "fp32")


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_an_encoder_and_its_decoder_say_what_transformers_says(name, tmp_path):
    model = tiny(name, tmp_path / "source")
    report = pressed(tmp_path / "source", "fp32")
    assert report["verdict"] == "verified", report["reasons"]
    assert report["quality"]["compared"] > 200 and report["quality"]["label_agreement"] == 1
    graphs = EncoderDecoder(tmp_path / "fp32", Target())
    for beams in (1, 3):
        how = {"max_new_tokens": 20, "num_beams": beams, "do_sample": False}
        expected, found = (one.generate(**asked(name), **how).tolist() for one in (model, graphs.speaker))
        assert expected == found, f"{beams} beams"


def test_weights_of_both_graphs_are_quantized(tmp_path):
    tiny("bart", tmp_path / "source")
    report = pressed(tmp_path / "source", "int8")
    assert report["verdict"] == "verified", report["reasons"]
    names = " ".join(layer["name"] for layer in report["layers"])
    assert "encoder.layers.1.fc1" in names and "decoder.layers.1.fc1" in names
    assert "encoder_attn" in names
