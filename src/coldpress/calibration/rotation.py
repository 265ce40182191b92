"""Turning the residual stream and the values of a whole checkpoint, one decoder layer in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.models.quantized_folder import LayerFiles, copy_other_files, write_checkpoint
from coldpress.networks.layerwise import Layerwise
from coldpress.quant.gptq import to_numpy, to_torch
from coldpress.quant.grid import Floats
from coldpress.quant.rotate import Doubles, Stream, fold_norms, random_rotation, rotate_stream, rotate_values, times

#: networks with RMSNorms in front of attention and MLP only, whose stream a rotation can turn
_TURNED = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "granite")
_ROWS = 16384
HEAD, NORM = "lm_head.weight", "model.norm.weight"


def check_rotation(config: dict[str, Any]) -> None:
    """Raise ColdpressError for a network whose residual stream cannot be turned."""
    if config.get("model_type") not in _TURNED:
        raise ColdpressError(
            f"a {config.get('model_type')} network cannot be rotated: something in it is not the same in every"
            " direction",
            hint=f"rotations are for {', '.join(_TURNED)}; quantize it without one",
        )


@dataclass(frozen=True)
class Rotations:
    """Orthogonal matrices: of the ``stream [K, K]``, and of the values of every head, ``heads [size, size]``."""

    stream: Doubles
    heads: Doubles

    @classmethod
    def random(cls, decoder: Layerwise, seed: int) -> Rotations:
        """Random ones, which follow from ``seed``."""
        return cls(random_rotation(decoder.width, seed), random_rotation(_head_size(decoder.config), seed + 1))


def rotate_checkpoint(
    decoder: Layerwise, folder: Path, work: Path, rotations: Rotations, progress: Callable[[str, float, float], None]
) -> None:
    """Write ``decoder``'s checkpoint with norms folded and stream and values turned, in float32, to ``folder``.

    ``work`` keeps finished layers. The head becomes a matrix of its own.
    """
    stream, files = stream_of(decoder), LayerFiles(work)
    names = [*decoder.layers, "ends"]
    for place, name in enumerate(names):
        progress("rotating", place, len(names))
        if files.quantized(name) is None:
            made = _ends(decoder, stream, rotations.stream) if name == "ends" else _layer(decoder, name, rotations)
            files.put(name, {key: np.ascontiguousarray(tensor) for key, tensor in made.items()}, [])
    spans = {key: span for name in names for key, span in files.tensors(name).items()}
    write_checkpoint(dict(sorted(spans.items())), folder)
    config = json.loads((decoder.folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "tie_word_embeddings": False}, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text, encoding="utf-8")
    copy_other_files(decoder.folder, folder)
    shutil.rmtree(work)


def layer_weights(decoder: Layerwise, layer: str) -> dict[str, Floats]:
    """The parameters of a layer by their full names."""
    return dict(decoder.weights(layer).items())


def _layer(decoder: Layerwise, name: str, rotations: Rotations) -> dict[str, Floats]:
    stream = stream_of(decoder)
    turned = rotate_stream(fold_norms(layer_weights(decoder, name), stream), stream, rotations.stream)
    return dict(rotate_values(turned, stream, rotations.heads))


def _ends(decoder: Layerwise, stream: Stream, turn: Doubles) -> dict[str, Floats]:
    """Embedding, last norm and head, in the type that they are stored in: the ends stay as large as they are."""
    norm, kind = to_numpy(to_torch(decoder.tensor(NORM))), _stored_type(decoder.dtype)
    embedding = to_numpy(to_torch(decoder.tensor(stream.embedding)))
    head = embedding if decoder.is_tied else to_numpy(to_torch(decoder.head_weight()))
    return {
        stream.embedding: _by_rows(embedding, lambda rows: times(rows, turn).astype(kind)),
        NORM: np.ones_like(norm).astype(kind),
        HEAD: _by_rows(
            head, lambda rows: times((rows * norm.astype(np.float64)).astype(np.float32), turn).astype(kind)
        ),
    }


def _stored_type(dtype: str) -> Any:
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16

        return bfloat16
    return np.dtype(dtype)


def _by_rows(weight: Floats, change: Callable[[Floats], Floats]) -> Floats:
    parts = [change(weight[start : start + _ROWS]) for start in range(0, len(weight), _ROWS)]
    whole: NDArray[np.float32] = np.concatenate(parts)
    return whole


def stream_of(decoder: Layerwise) -> Stream:
    """The weights at the residual stream of a network that `check_rotation` lets pass."""
    norms: dict[str, tuple[str, ...]] = {}
    producers: list[str] = []
    values: list[tuple[str, str]] = []
    for layer in decoder.layers:
        known = {name.removeprefix(f"{layer}.") for name in decoder.linears(layer)}
        fused = "self_attn.qkv_proj" in known
        attention = ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj")
        mlp = ("gate_up_proj",) if "mlp.gate_up_proj" in known else ("gate_proj", "up_proj")
        norms[f"{layer}.input_layernorm.weight"] = tuple(f"{layer}.self_attn.{name}.weight" for name in attention)
        norms[f"{layer}.post_attention_layernorm.weight"] = tuple(f"{layer}.mlp.{name}.weight" for name in mlp)
        producers += [f"{layer}.self_attn.o_proj.weight", f"{layer}.mlp.down_proj.weight"]
        if not fused:
            values.append((f"{layer}.self_attn.v_proj.weight", f"{layer}.self_attn.o_proj.weight"))
    config = decoder.config
    norms[NORM] = (HEAD,)
    return Stream(
        f"{decoder.embedding}.weight",
        HEAD,
        norms,
        tuple(producers),
        tuple(values),
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    )


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
