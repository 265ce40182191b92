"""Turning the residual stream and the values of a whole checkpoint, one decoder layer in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.networks.layerwise import Layerwise
from coldpress.networks.quantized_folder import LayerFiles, copy_other_files, write_checkpoint
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
            f"a {config.get('model_type')} network cannot be rotated: something in it is not the same in every direction",
            hint=f"rotations are for {', '.join(_TURNED)}; quantize it without one",
        )


def rotate_checkpoint(
    decoder: Layerwise, folder: Path, work: Path, seed: int, progress: Callable[[str, float, float], None]
) -> None:
    """Write ``decoder``'s checkpoint with norms folded and stream and values turned, in float32, to ``folder``.

    The rotations follow from ``seed``. ``work`` keeps finished layers. The head becomes a matrix of its own.
    """
    stream, files = _stream(decoder), LayerFiles(work)
    turn = random_rotation(decoder.width, seed)
    heads = random_rotation(_head_size(decoder.config), seed + 1)
    names = [*decoder.layers, "ends"]
    for place, name in enumerate(names):
        progress("rotating", place, len(names))
        if files.notes(name) is None:
            made = _ends(decoder, stream, turn) if name == "ends" else _layer(decoder, name, stream, turn, heads)
            files.put(name, {key: np.ascontiguousarray(tensor) for key, tensor in made.items()}, [])
    spans = {key: span for name in names for key, span in files.tensors(name).items()}
    write_checkpoint(dict(sorted(spans.items())), folder)
    config = json.loads((decoder.folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "tie_word_embeddings": False}, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text, encoding="utf-8")
    copy_other_files(decoder.folder, folder)
    shutil.rmtree(work)


def _layer(decoder: Layerwise, name: str, stream: Stream, turn: Doubles, heads: Doubles) -> dict[str, Floats]:
    turned = rotate_stream(fold_norms(decoder.weights(name), stream), stream, turn)
    return dict(rotate_values(turned, stream, heads))


def _ends(decoder: Layerwise, stream: Stream, turn: Doubles) -> dict[str, Floats]:
    """Embedding, last norm and head."""
    norm = decoder.tensor(NORM).cpu().numpy()
    embedding = decoder.tensor(stream.embedding).cpu().numpy()
    head = embedding if decoder.is_tied else decoder.head_weight().cpu().numpy()
    return {
        stream.embedding: _by_rows(embedding, lambda rows: times(rows, turn)),
        NORM: np.ones_like(norm),
        HEAD: _by_rows(head, lambda rows: times((rows * norm.astype(np.float64)).astype(np.float32), turn)),
    }


def _by_rows(weight: Floats, change: Callable[[Floats], Floats]) -> Floats:
    parts = [change(weight[start : start + _ROWS]) for start in range(0, len(weight), _ROWS)]
    whole: NDArray[np.float32] = np.concatenate(parts)
    return whole


def _stream(decoder: Layerwise) -> Stream:
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
