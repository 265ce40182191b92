"""Does every pass once, with tiny models: ``python every_pass.py SOURCES OUT [NAME ...]``; the results lie in
``OUT/NAME``.

What is known of each result survives JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import coldpress
from coldpress.models.provenance import Provenance
from coldpress.parts import schema

TEXT = {"data_files": ("text.txt",), "max_seq_len": 32, "num_samples": 6}
QUANTIZED = {**TEXT, "group_size": 16}
ONNX_CALIBRATED = {"max_seq_len": 16, "num_samples": 4}
ROWS = {"type": "text_corpus", "parameters": {"data_files": ["text.txt"], "max_seq_len": 32}}
TRAINED = {"train_data": ROWS, "lora_r": 2, "training_args": {"max_steps": 2}}

ON_GPU = {"device": "gpu", "provider": "CUDAExecutionProvider"}

#: result -> pass, what it works on (a source or an earlier result), parameters
PASSES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    **{f"press-{name}": ("press", "tiny", {"precision": name}) for name in ("int4", "int8")},
    **{f"press-{name}": ("press", "tiny", {"precision": name, **ON_GPU}) for name in ("fp16", "bf16")},
    "press-fp32": ("press", "tiny", {"precision": "fp32", "logits": "all"}),
    **{
        f"quantize-{name}": ("quantize", "tiny", {**QUANTIZED, "algorithm": name})
        for name in ("best", "gptq", "awq", "autoround", "kquant")
    },
    **{f"quantize-{name}": ("quantize", "tiny", {"group_size": 16, "algorithm": name}) for name in ("rtn", "hqq")},
    "quantize-in-gptq": ("quantize", "tiny", {"algorithm": "rtn", "format": "gptq"}),
    "quantize-in-awq": ("quantize", "tiny", {"algorithm": "rtn", "format": "awq"}),
    "press-quantized": ("press", "quantize-best", {}),
    "rotate-quarot": ("rotate", "tiny", {"rotation": "quarot"}),
    "rotate-spinquant": ("rotate", "tiny", {"rotation": "spinquant", **TEXT}),
    "unpack_gguf": ("unpack_gguf", "tiny.gguf", {}),
    "take_text_model": ("take_text_model", "multimodal", {}),
    "lora": ("lora", "tiny", TRAINED),
    "attach_adapters": ("attach_adapters", "tiny", {"adapter_path": ("adapter",)}),
    "merge_adapter_weights": ("merge_adapter_weights", "attach_adapters", {}),
    "merge-an-adapter": ("merge_adapter_weights", "tiny", {"adapter_path": "adapter"}),
    "press-adapters": ("press", "attach_adapters", {}),
    "extract_adapters": ("extract_adapters", "exported", {}),
    "quantize_onnx-kquant": ("quantize_onnx", "press-fp32", {}),
    "quantize_onnx-best": ("quantize_onnx", "press-fp32", {"algorithm": "best", **TEXT}),
    "dynamic_to_fixed_shape": ("dynamic_to_fixed_shape", "dense", {"dim_param": ("batch",), "dim_value": (2,)}),
    "graph_surgeries": ("graph_surgeries", "dense", {"surgeries": [{"type": "gemm_to_mat_mul_add"}]}),
    "mat_mul_n_bits_to_qdq": ("mat_mul_n_bits_to_qdq", "quantize_onnx-kquant", {"signed": True}),
    "qdq_to_mat_mul_n_bits": ("qdq_to_mat_mul_n_bits", "mat_mul_n_bits_to_qdq", {}),
    "mend": ("mend", "dense", {}),
    "onnx_dynamic_quantization": ("onnx_dynamic_quantization", "dense", {}),
    "onnx_static_quantization": ("onnx_static_quantization", "convolutional", {"num_samples": 2}),
    "onnx_conversion": ("onnx_conversion", "module.py", {}),
    "onnx_conversion-pt2": ("onnx_conversion", "module.pt2", {}),
    "onnx_conversion-torchscript": (
        "onnx_conversion",
        "module.pt",
        {"io_config": {"input_names": ["x"], "input_shapes": [[2, 4]], "dynamic_axes": {"x": {"0": "n"}}}},
    ),
    "onnx_fastest": ("onnx_fastest", "dense", {"rounds": 2, "runs": 1}),
    "onnx_float_to_float16": ("onnx_float_to_float16", "dense", ON_GPU),
    "onnx_io_datatype_converter": (
        "onnx_io_datatype_converter",
        "dense",
        {"name_pattern": "y", "source_dtype": "float32", "target_dtype": "float16"},
    ),
    "onnx_opset_conversion": ("onnx_opset_conversion", "dense", {"target_opset": 21}),
    "onnx_peephole_optimizer": ("onnx_peephole_optimizer", "dense", {}),
    "ort_transformers_optimization": ("ort_transformers_optimization", "dense", {}),
    "session_options-dense": ("session_options", "dense", {"intra_op_num_threads": 1}),
    "session_options": ("session_options", "press-fp32", {"intra_op_num_threads": 1}),
    "session_params_tuning": ("session_params_tuning", "dense", {"rounds": 1, "runs": 1, "intra_threads": (1,)}),
}
#: what is tuned depends on how fast things run
SAME_BYTES = tuple(name for name in PASSES if name not in ("session_params_tuning", "onnx_fastest"))


def do(sources: Path, out: Path, names: Iterable[str] = SAME_BYTES) -> None:
    for name in names:
        what, model, parameters = PASSES[name]
        given = placed(parameters, sources)
        source = next(place / model for place in (out, sources) if (place / model).exists())
        made = coldpress.run_pass(what, source, out / name, **given).model.provenance
        assert schema.build(Provenance, json.loads(json.dumps(schema.plain(made)))) == made, name


def placed(value: Any, sources: Path) -> Any:
    """A parameter with the names of sources in it as paths."""
    if isinstance(value, Mapping):
        return {key: placed(one, sources) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(placed(one, sources) for one in value)
    return str(sources / value) if isinstance(value, str) and (sources / value).exists() else value


if __name__ == "__main__":
    do(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or SAME_BYTES)
