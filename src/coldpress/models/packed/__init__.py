"""Quantized Hugging Face checkpoints: compressed-tensors, GPTQ and AWQ, written and read without loss.

Each format has ``tensors_of`` and ``config_of`` to write with, module by module, and ``linears_in`` to read with.
"""

from __future__ import annotations

from coldpress.models.packed.folder import quantization_config, read_packed, usual_grid
from coldpress.models.packed.linear import PackedLinear
from coldpress.models.packed.spans import FloatTensors, PackedSpan, plain_tensors, tensors_to_press

__all__ = [
    "FloatTensors",
    "PackedLinear",
    "PackedSpan",
    "plain_tensors",
    "quantization_config",
    "read_packed",
    "tensors_to_press",
    "usual_grid",
]
