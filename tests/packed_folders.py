"""Quantized folders for tests: a plain model with its projections packed, and the codes that went in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.models.checkpoint import Checkpoint
from coldpress.models.packed import awq, compressed_tensors, gptq
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.rtn import rtn

FORMATS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, Any]]]] = {
    "compressed-tensors": (compressed_tensors.tensors_of, compressed_tensors.config_of),
    "gptq": (
        lambda *layer: gptq.tensors_of(*layer, checkpoint_format=gptq.V2),
        lambda grids: gptq.config_of(grids, checkpoint_format=gptq.V2),
    ),
    "awq": (awq.tensors_of, awq.config_of),
}


@dataclass
class Packed:
    """A quantized folder, the same model with the values of the codes as floats, and the codes by module."""

    folder: Path
    plain: Path
    codes: dict[str, Codes]


def rounded(weight: np.ndarray, grid: Grid) -> Codes:
    """Codes with scales that float16 holds, and so every format."""
    codes = rtn(weight, grid)
    codes.scales = codes.scales.astype(np.float16).astype(np.float32)
    return codes


def pack_folder(
    source: Path,
    output: Path,
    kind: str,
    grid_of: Callable[[str], Grid | None],
    ending: str | tuple[str, ...] = "_proj",
) -> Packed:
    """Pack the modules of ``source`` whose names end in ``ending`` on the grids that ``grid_of`` gives; None: not."""
    from safetensors.numpy import save_file

    tensors_of, config_of = FORMATS[kind]
    packed: dict[str, Any] = {}
    floats: dict[str, Any] = {}
    made: dict[str, Codes] = {}
    for name, span in Checkpoint(source).tensors.items():
        weight, module = np.array(span.rows(0, span.shape[0])), name.removesuffix(".weight")
        grid = grid_of(module) if module.endswith(ending) and weight.ndim == 2 else None
        if grid is None:
            packed[name] = floats[name] = weight
            continue
        made[module] = rounded(weight, grid)
        packed |= tensors_of(module, made[module], weight.shape[1])
        floats[name] = dequantize(made[module], weight.shape[1])
    config = json.loads((source / "config.json").read_text())
    quantized = {"quantization_config": config_of({module: codes.grid for module, codes in made.items()})}
    for folder, tensors, entry in (("packed", packed, quantized), ("plain", floats, {})):
        shutil.copytree(source, output / folder, ignore=shutil.ignore_patterns("*.safetensors"))
        arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(arrays, output / folder / "model.safetensors", metadata={"format": "pt"})
        (output / folder / "config.json").write_text(json.dumps({**config, **entry}))
    return Packed(output / "packed", output / "plain", made)


def ignoring_the_rest(packed: Packed) -> None:
    """Tell transformers which linear layers are not packed, the head and routers among them."""
    file = packed.folder / "config.json"
    config = json.loads(file.read_text())
    names = {name.removesuffix(".weight") for name in Checkpoint(packed.plain).tensors}
    config["quantization_config"]["ignore"] = sorted({"lm_head", *names} - set(packed.codes))
    file.write_text(json.dumps(config))


def transformers_logits(folder: Path, window: np.ndarray) -> np.ndarray:
    """The logits [tokens, vocabulary] that plain transformers gives in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(window)[None]).logits[0].numpy()
    return logits


def logits_of(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Logits ``[tokens, vocab]`` of a text, by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.as_tensor(ids)[None]).logits[0].numpy()
