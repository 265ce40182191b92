"""A model of Phi-3.5-mini's shape to int4: time and memory against the model builder, and memory against depth.

The weights are random, 3.8 billion in bfloat16 (7.6 GB): time, memory and size do not depend on their values. One
round, because it takes minutes; the builder needs about 20 GB of memory and is left out where there is less.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Claim, Options, Outcome, take_turns
from benchmarks.press_smollm2 import Pressed, builder, coldpress, press, presser, share, smollm2_folder, summary

LAYERS = 32
_HIDDEN, _INTERMEDIATE, _VOCABULARY, _HEADS = 3072, 8192, 32064, 32
_SHARD_BYTES = 1_900_000_000
_BLOCK_WEIGHTS = 1 << 24
_BUILDER_MEMORY = 2.75  # bytes for each byte of the checkpoint
_OUTPUT_DISK = 0.8  # the same; two models of a third of its size, if the cache and the output cannot share theirs
_SHALLOW, _DEEP = 4, 12
#: what the calibrated default may take for all layers
_DEFAULT_MINUTES, _DEFAULT_GB = 10.0, 2.5
TOKENIZER_VOCABULARY = 49_152  # that of the tokenizer in the folder, which a calibration text needs
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_CONFIG = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": _HIDDEN,
    "intermediate_size": _INTERMEDIATE,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def run(options: Options) -> Outcome:
    """The claims about a large model, and about memory that does not grow with depth."""
    layers = options.layers or LAYERS
    depths = {depth: _peak_mb(depth, options) for depth in (_SHALLOW, _DEEP)}
    with random_checkpoint(layers, options) as folder:
        measured, remarks = _compare(folder, layers, options)
    with random_checkpoint(layers, options, TOKENIZER_VOCABULARY) as folder:
        default = press(coldpress(folder, None, options.threads), options)
    ratio = depths[_DEEP] / depths[_SHALLOW]
    growth = Claim(f"anonymous memory with {_DEEP} layers over that with {_SHALLOW}", ratio, 1.1)
    measured["coldpress default"] = summary([default])
    data = {"layers": layers, "contenders": measured, "peak_anonymous_mb_by_layers": depths}
    return Outcome(data, [*_claims(measured, layers), *_claims_of_default(default, layers), growth], remarks)


def _claims_of_default(default: Pressed, layers: int) -> list[Claim]:
    """The whole of it, measured."""
    if layers != LAYERS:
        return []
    return [
        Claim("coldpress default, calibrated: minutes", default.used.wall_s / 60, _DEFAULT_MINUTES),
        Claim(
            "coldpress default, calibrated: anonymous memory in GB", default.used.peak_anonymous_mb / 1e3, _DEFAULT_GB
        ),
    ]


def _compare(folder: Path, layers: int, options: Options) -> tuple[dict[str, Any], list[str]]:
    commands = {"coldpress": "kquant", "coldpress rtn": "rtn"}
    contenders = {
        name: presser(coldpress(folder, algorithm, options.threads), options) for name, algorithm in commands.items()
    }
    needed, free = _bytes_of(layers) * _BUILDER_MEMORY, _available_bytes()
    remarks = []
    if free >= needed:
        contenders["builder"] = presser(builder(folder), options)
    else:
        remarks.append(f"builder left out: it needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are available")
    turns = take_turns(contenders, options.rounds or 1)
    return {name: summary(runs) for name, runs in turns.items()}, remarks


def _claims(measured: dict[str, Any], layers: int) -> list[Claim]:
    claims = []
    if "builder" in measured:
        for name, wall in (("coldpress rtn", 0.25), ("coldpress", 3.0)):
            time, memory = share(measured, name, "wall_s"), share(measured, name, "peak_anonymous_mb")
            claims.append(Claim(f"{name}: wall time as a share of the builder's", time, wall))
            claims.append(Claim(f"{name}: anonymous memory as a share of the builder's", memory, 0.05))
    if layers == LAYERS:
        claims.append(Claim("coldpress: size of the model in GB", measured["coldpress"]["output_mb"] / 1e3, 2.5))
    return claims


def _peak_mb(layers: int, options: Options) -> float:
    with random_checkpoint(layers, options) as folder:
        return press(coldpress(folder, "rtn", options.threads), options).used.peak_anonymous_mb


@contextmanager
def random_checkpoint(layers: int, options: Options, vocabulary: int = _VOCABULARY) -> Iterator[Path]:
    """A checkpoint with that many layers; removed afterwards unless it is to be kept, and taken as it is if kept
    before."""
    folder = options.scratch / f"phi_shape_{layers}_layers_{vocabulary}"
    if not (folder / "config.json").exists():
        write_checkpoint(folder, layers, smollm2_folder(options), vocabulary)
    try:
        yield folder
    finally:
        if not options.keep:
            shutil.rmtree(folder)


def write_checkpoint(folder: Path, layers: int, tokenizer: Path, vocabulary: int = _VOCABULARY) -> None:
    """Write random weights in shards, with bounded memory, and the tokenizer files of another model.

    Raises RuntimeError when the disk has no room for the checkpoint and what is made from it.
    """
    needed, free = _bytes_of(layers) * (1 + _OUTPUT_DISK), shutil.disk_usage(folder.parent).free
    if free < needed:
        said = f"{folder.parent} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed"
        raise RuntimeError(f"{said}: name another folder with --scratch")
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was interrupted
    folder.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    _write_shards(folder, _tensors(layers, vocabulary))
    (folder / "config.json").write_text(
        json.dumps({**_CONFIG, "num_hidden_layers": layers, "vocab_size": vocabulary}), encoding="utf-8"
    )


def _tensors(layers: int, vocabulary: int = _VOCABULARY) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers writes them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, _HIDDEN)}
    for index in range(layers):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (_HIDDEN,)
        shapes[f"{layer}.self_attn.qkv_proj.weight"] = (3 * _HIDDEN, _HIDDEN)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (_HIDDEN, _HIDDEN)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (_HIDDEN,)
        shapes[f"{layer}.mlp.gate_up_proj.weight"] = (2 * _INTERMEDIATE, _HIDDEN)
        shapes[f"{layer}.mlp.down_proj.weight"] = (_HIDDEN, _INTERMEDIATE)
    return {**shapes, "model.norm.weight": (_HIDDEN,), "lm_head.weight": (vocabulary, _HIDDEN)}


def _bytes_of(layers: int) -> int:
    return sum(2 * math.prod(shape) for shape in _tensors(layers).values())


def _write_shards(folder: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    random = np.random.default_rng(0)
    block = _bfloat16(random.standard_normal(_BLOCK_WEIGHTS, np.float32) * np.float32(0.02))
    shards = _shards(tensors)
    places = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as stream:
            stream.write(_header(shard))
            for tensor, shape in shard.items():
                for piece in _pieces(block, shape, random):
                    stream.write(piece.tobytes())
                places[tensor] = name
    index = {"metadata": {"total_size": sum(2 * math.prod(shape) for shape in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(tensors: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in tensors.items():
        size += 2 * math.prod(shape)
        if size > _SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 2 * math.prod(shape)
        shards[-1][name] = shape
    return shards


def _header(shard: dict[str, tuple[int, ...]]) -> bytes:
    """The head of a safetensors file: its length (8 bytes, little-endian), then JSON that is padded to a multiple of
    8."""
    entries, offset = {}, 0
    for name, shape in shard.items():
        end = offset + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(block: np.ndarray, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[np.ndarray]:
    """The weights of a tensor: ones for a norm, else stretches of the block from random places, with random flips of
    all signs."""
    left = math.prod(shape)
    if len(shape) == 1:
        yield _bfloat16(np.ones(left, np.float32))
        return
    while left:
        start = int(random.integers(0, len(block)))
        piece = block[start : start + left]
        yield piece ^ np.uint16(0x8000) if random.integers(2) else piece
        left -= len(piece)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of finite float32 values as bfloat16, rounded to the nearest even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _available_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
