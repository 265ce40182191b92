"""The rotary cache of YaRN, with all settings that transformers has for it.

Method: https://arxiv.org/abs/2309.00071. mobius 0.1 leaves out the settings ``attention_factor`` and ``truncate``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir


def complete_yarn(graph: ir.Graph, hf_config: Any, config: Any) -> None:
    """Replace the rotary caches of a graph whose configuration asks for YaRN. ``config``: mobius'."""
    settings = getattr(hf_config, "rope_parameters", None)
    if not isinstance(settings, dict) or settings.get("rope_type") != "yarn":
        return
    caches = {
        kind: [value for name, value in graph.initializers.items() if name.endswith(f"{kind}_cache")]
        for kind in ("cos", "sin")
    }
    columns = [int(value.shape[1]) for value in caches["cos"] if value.shape is not None]
    if len(columns) != 1:
        return
    frequencies, factor = _yarn(settings, 2 * columns[0], config.max_position_embeddings)
    for kind, values in caches.items():
        for value in values:
            angles = np.outer(np.arange(int(value.shape[0]), dtype=np.float32), frequencies.astype(np.float32))
            table = (np.cos(angles) if kind == "cos" else np.sin(angles)) * factor
            dtype = value.dtype or ir.DataType.FLOAT
            value.const_value = ir.tensor(table.astype(np.float32), name=value.name)
            if dtype != ir.DataType.FLOAT:
                value.const_value = ir.tensor(table.astype(dtype.numpy()), dtype=dtype, name=value.name)


def _yarn(settings: dict[str, Any], width: int, positions: int) -> tuple[np.ndarray, float]:
    """Frequencies ``[width / 2]`` and the factor of the cosines and sines."""
    base, factor = settings["rope_theta"], settings.get("factor") or 1.0
    trained = settings.get("original_max_position_embeddings") or positions
    low, high = (
        width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (settings.get("beta_fast") or 32, settings.get("beta_slow") or 1)
    )
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / ((high - low) or 0.001), 0, 1)
    plain = 1.0 / base ** (np.arange(0, width, 2) / width)
    return plain * (1 - ramp) + plain / factor * ramp, _attention_factor(settings, factor)


def _attention_factor(settings: dict[str, Any], factor: float) -> float:
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, other = settings.get("mscale"), settings.get("mscale_all_dim")
    return scale(one) / scale(other) if one and other else scale(1.0)
