"""Letting transformers load what its newest releases refuse: ``pack-quantized`` checkpoints with zero points, or mixed
bits.

compressed-tensors since 0.18 does not pack the zero points of the empty modules that transformers fills, and
transformers since 5.23 refuses tensors of another shape than the module's. A checkpoint with a single asymmetric grid
needs nothing of this: its config says ``dequantize`` (see ``compressed_tensors.config_of``). But for mixtures:
transformers dequantizes experts without their zero points, and all by one scheme; here each is by what is stored of it.
"""

from __future__ import annotations

from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.packed.compressed_tensors import FORMAT, METHOD
from coldpress.models.packed.words import words_for

_WORDS, _SCALES, _ZEROS = ".weight_packed", ".weight_scale", ".weight_zero_point"


def register() -> None:
    """From now on ``from_pretrained`` loads them, in this process; calling it again changes nothing."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    usual = AUTO_QUANTIZER_MAPPING[METHOD]
    if usual.__module__ != __name__:
        # transformers' own register_quantizer refuses names that are taken
        AUTO_QUANTIZER_MAPPING[METHOD] = _reading_all(usual)


def _reading_all(usual: Any) -> Any:
    def process(self: Any, model: Any, **options: Any) -> None:
        usual._process_model_before_weight_loading(self, model, **options)
        for module in model.modules():
            _pack_zero_points(module)

    def operations(self: Any) -> dict[str, Any]:
        return {name: _reading_experts(operation) for name, operation in usual.get_load_operations(self).items()}

    changes = {"_process_model_before_weight_loading": process, "get_load_operations": operations}
    return type(usual.__name__, (usual,), {"__module__": __name__, **changes})


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


def _reading_experts(usual: Any) -> Any:
    """The operation that dequantizes what belongs to one parameter, with another way for those of fused experts."""

    def convert(self: Any, input_dict: dict[str, Any], *args: Any, **options: Any) -> dict[str, Any]:
        names = [name for name in input_dict if name.endswith(_WORDS)]
        if not names:
            found: dict[str, Any] = usual.convert(self, input_dict, *args, **options)
            return found
        columns = options["model"].get_parameter(options["full_layer_name"]).shape[-1]
        groups = self.hf_quantizer.compressor.quantization_config.config_groups.values()
        known = {group.weights.num_bits for group in groups}
        return {name: _experts(name.removesuffix(_WORDS), input_dict, columns, known) for name in names}

    return type(usual.__name__, (usual,), {"__module__": __name__, "convert": convert})


def _experts(part: str, tensors: dict[str, Any], columns: int, known_bits: set[int]) -> list[Any]:
    """The floats ``[rows, columns]`` of one part of each expert."""
    words, scales = tensors[part + _WORDS], tensors[part + _SCALES]
    zeros = tensors.get(part + _ZEROS) or [None] * len(words)
    if not len(words) == len(scales) == len(zeros):
        raise ColdpressError(f"of the experts' '{part}' only some are packed, or have zero points")
    return [_values(*tensors_of, columns, known_bits) for tensors_of in zip(words, scales, zeros, strict=True)]


def _values(words: Any, scales: Any, zeros: Any, columns: int, known_bits: set[int]) -> Any:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    fitting = [bits for bits in known_bits if words_for(columns, bits) == words.shape[1]]
    if len(fitting) != 1:
        raise ColdpressError(f"{words.shape[1]} words for {columns} weights do not tell how many bits these have")
    weights = QuantizationArgs(
        num_bits=fitting[0],
        type="int",
        symmetric=zeros is None,
        strategy="group",
        group_size=columns // scales.shape[1],
    )
    shape = torch.tensor([words.shape[0], columns])
    state = {"weight_packed": words, "weight_scale": scales, "weight_shape": shape, "weight_zero_point": zeros}
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return BaseCompressor.get_value_from_registry(FORMAT).decompress(state, scheme)["weight"]
