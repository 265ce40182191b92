"""Letting transformers load what its newest releases refuse: asymmetric ``pack-quantized`` checkpoints of mixed bits.

compressed-tensors since 0.18 does not pack the zero points of the empty modules that transformers fills, and
transformers since 5.23 refuses tensors of another shape than the module's. A checkpoint with a single asymmetric grid
needs nothing of this: its config says ``dequantize`` (see ``compressed_tensors.config_of``).
"""

from __future__ import annotations

from typing import Any

from coldpress.networks.packed.compressed_tensors import METHOD
from coldpress.networks.packed.words import words_for


def register() -> None:
    """From now on ``from_pretrained`` loads them, in this process; calling it again changes nothing."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    usual = AUTO_QUANTIZER_MAPPING[METHOD]
    if usual.__module__ != __name__:
        # transformers' own register_quantizer refuses names that are taken
        AUTO_QUANTIZER_MAPPING[METHOD] = _with_packed_zero_points(usual)


def _with_packed_zero_points(usual: Any) -> Any:
    def process(self: Any, model: Any, **options: Any) -> None:
        usual._process_model_before_weight_loading(self, model, **options)
        for module in model.modules():
            _pack_zero_points(module)

    return type(usual.__name__, (usual,), {"__module__": __name__, "_process_model_before_weight_loading": process})


def _pack_zero_points(module: Any) -> None:
    """Give an empty packed module zero points of the shape that is stored: ``[ceil(rows * bits / 32), groups]``."""
    import torch

    zeros = getattr(module, "weight_zero_point", None)
    if zeros is None or zeros.dtype != torch.int8 or not hasattr(module, "weight_packed"):
        return
    bits = module.quantization_scheme.weights.num_bits
    shape = (words_for(zeros.shape[0], bits), *zeros.shape[1:])
    empty = torch.empty(shape, dtype=torch.int32, device=zeros.device)
    module.weight_zero_point = torch.nn.Parameter(empty, requires_grad=False)
