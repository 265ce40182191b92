"""Quantized Hugging Face checkpoints: compressed-tensors, GPTQ and AWQ, written and read without loss.

Each format has ``tensors_of`` and ``config_of`` to write with, module by module, and ``linears_in`` to read with.
"""

from __future__ import annotations

from coldpress.networks.packed.folder import FloatTensors, quantization_config, read_packed
from coldpress.networks.packed.linear import PackedLinear

__all__ = ["FloatTensors", "PackedLinear", "quantization_config", "read_packed"]
