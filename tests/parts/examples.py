"""How each part is put to work on a small real model of each format it accepts, and a request that it refuses.

A part that is added needs an entry here; `tests/contracts/test_parts.py` says which. Examples of passes stand in
`tests/end_to_end/every_pass.py`. Texts that name a file of `tests/sources.py` stand for its path.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.end_to_end.every_pass import PASSES

Parameters = Mapping[str, Any]

#: pass -> source, flags of ``run-pass`` that it refuses, words of the reason
REFUSED_PASSES: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "attach_adapters": ("tiny", ("--adapter_path", "missing"), "missing"),
    "dynamic_to_fixed_shape": ("dense", ("--dim_param", "batch"), "dim_value"),
    "extract_adapters": ("tiny", (), "takes onnx, but gets hf"),
    "graph_surgeries": ("dense", ("--surgeries", "gemm_to_matmul"), "gemm_to_matmul"),
    "lora": ("tiny", ("--method", "lora"), "nothing to train on"),
    "mat_mul_n_bits_to_qdq": ("dense", (), "no graph has a MatMulNBits"),
    "mend": ("dense", ("--rules", "slow_things"), "slow_things"),
    "merge_adapter_weights": ("tiny", (), "adapter"),
    "onnx_conversion": ("tiny", (), "takes script or pt2 or torchscript, but gets hf"),
    "onnx_fastest": ("dense", ("--rounds", "1"), "two turns"),
    "onnx_dynamic_quantization": ("dense", ("--precision", "int5"), "int5"),
    "onnx_float_to_float16": ("dense", (), "float16"),
    "onnx_io_datatype_converter": ("dense", ("--source_dtype", "float99"), "float99"),
    "onnx_opset_conversion": ("dense", ("--target_opset", "1"), "opset"),
    "onnx_peephole_optimizer": ("tiny", (), "takes onnx, but gets hf"),
    "onnx_static_quantization": ("dense", ("--percentile", "99.0"), "percentile has no effect"),
    "ort_transformers_optimization": ("dense", ("--opt_level", "7"), "opt_level"),
    "press": ("tiny", ("--precision", "fp32", "--block_size", "64"), "block_size has no effect"),
    "qdq_to_mat_mul_n_bits": ("dense", (), "no product has a weight with a scale"),
    "quantize": ("tiny", ("--algorithm", "rtn", "--num_samples", "4"), "data has no effect with rtn"),
    "quantize_onnx": ("dense", ("--algorithm", "rtn", "--data_files", "a.txt"), "data has no effect with rtn"),
    "rotate": ("tiny", ("--rotation", "quarot", "--group_size", "16"), "group_size has no effect"),
    "session_options": ("dense", ("--execution_mode", "both"), "both"),
    "session_params_tuning": ("dense", ("--rounds", "0"), "1 or more"),
    "take_text_model": ("tiny", (), "takes multimodal, but gets hf"),
    "unpack_gguf": ("tiny", (), "takes gguf, but gets hf"),
}

CHAT = {"data_files": ["questions.jsonl"], "text_cols": ["text"], "chat_template": False}
#: kind of data -> format -> a model that takes it, parameters
DATA: Mapping[str, Mapping[str, tuple[str, Parameters]]] = {
    "arrays": {"hf": ("tiny", {"file": "inputs.npz"}), "onnx": ("dense", {"file": "inputs.npz"})},
    "audio": {
        "hf": ("sounds", {"data_files": ["sounds.jsonl"], "folder": ".", "label_col": "class"}),
        "onnx": ("sounds", {"data_files": ["sounds.jsonl"], "folder": ".", "label_col": "class"}),
    },
    "calibration_text": {
        "hf": ("tiny", {"max_seq_len": 16, "max_samples": 3}),
        "onnx": ("press-fp32", {"data_files": ["text.txt"], "max_seq_len": 16, "max_samples": 3}),
    },
    "images": {
        "hf": ("pictures", {"folder": "photos", "scale": 1.0}),
        "onnx": ("pictures", {"folder": "photos", "scale": 1.0}),
    },
    "prompts": {"hf": ("tiny", CHAT), "onnx": ("press-fp32", CHAT)},
    "script": {
        "hf": ("tiny", {"script": "score.py", "function": "ids"}),
        "onnx": ("dense", {"script": "score.py", "function": "batches"}),
    },
    "user_script": {
        "hf": ("tiny", {"script": "score.py", "dataloader_func": "loader", "func_kwargs": {"of": "input_ids"}}),
        "onnx": ("dense", {"script": "score.py", "dataloader_func": "loader"}),
    },
    "synthetic": {"onnx": ("dense", {"max_samples": 3}), "hf": ("tiny", {"max_samples": 3})},
    "text_classification": {
        "hf": ("tiny", {"data_files": ["sms.csv"]}),
        "onnx": ("spam", {"data_files": ["sms.csv"]}),
    },
    "text_corpus": {
        "hf": ("tiny", {"data_files": ["text.txt"], "max_seq_len": 32, "max_samples": 3}),
        "onnx": ("press-fp32", {"data_files": ["text.txt"], "max_seq_len": 32, "max_samples": 3}),
    },
    "token_classification": {
        "hf": ("tiny", {"data_files": ["words.jsonl"]}),
        "onnx": ("spam", {"data_files": ["words.jsonl"]}),
    },
}
#: kind of data -> parameters that it refuses
REFUSED_DATA: Mapping[str, Parameters] = {
    "arrays": {"file": "missing.npz"},
    "audio": {"data_files": ["missing.jsonl"]},
    "calibration_text": {"max_samples": 0},
    "images": {"folder": "missing"},
    "prompts": {"data_files": ["missing.jsonl"]},
    "script": {"script": "missing.py", "function": "batches"},
    "synthetic": {"max_samples": 0},
    "text_classification": {"data_files": ["missing.csv"]},
    "text_corpus": {"strategy": "sliding_window"},
    "token_classification": {"data_files": ["missing.jsonl"]},
    "user_script": {"script": "missing.py", "dataloader_func": "loader"},
}

SMS = {"type": "text_classification", "parameters": {"data_files": ["sms.csv"]}}
ASKED = {"type": "prompts", "parameters": CHAT}
#: metric -> format -> model, the model that it is compared with (or empty), parameters
METRICS: Mapping[str, Mapping[str, tuple[str, str, Parameters]]] = {
    "accuracy": {
        "onnx": ("spam", "", {"data": SMS}),
        "hf": ("tiny", "", {"data": ASKED, "task": "generation", "max_new_tokens": 2}),
    },
    "adapter_divergence": {"onnx": ("press-adapters", "attach_adapters", {"tokens": 16})},
    "custom": {
        name: (model, "", {"script": "score.py", "function": "score"})
        for name, model in (("onnx", "dense"), ("hf", "tiny"), ("gguf", "tiny.gguf"))
    },
    "divergence": {
        "onnx": ("press-fp32", "tiny", {"windows": 1, "tokens": 16}),
        "hf": ("quantize-rtn", "tiny", {"windows": 1, "tokens": 16}),
    },
    "generation": {"onnx": ("press-int4", "", {"prompt_tokens": 8, "new_tokens": 4, "repeats": 1})},
    "graph_divergence": {"onnx": ("onnx_opset_conversion", "dense", {})},
    "latency": {
        "onnx": ("dense", "", {"warmup": 1, "repeats": 3}),
        "hf": ("tiny", "", {"warmup": 1, "repeats": 3}),
    },
    "lm_eval": {
        "onnx": ("press-fp32", "", {"tasks": ["pick"], "task_path": "tasks"}),
        "hf": ("tiny", "", {"tasks": ["pick"], "task_path": "tasks"}),
    },
    "memory": {"onnx": ("press-int4", "", {"prompt_tokens": 8, "new_tokens": 4})},
    "module_divergence": {"onnx": ("onnx_conversion", "module.py", {})},
    "perplexity": {
        "onnx": ("press-fp32", "", {"windows": 1, "tokens": 16}),
        "hf": ("tiny", "", {"windows": 1, "tokens": 16}),
    },
    "size": {
        form: (model, "", {})
        for form, model in (("onnx", "dense"), ("hf", "tiny"), ("multimodal", "multimodal"), ("gguf", "tiny.gguf"))
    },
    "task_divergence": {
        "onnx": ("press-fp32", "tiny", {"task": "token_classification"}),
        "hf": ("quantize-rtn", "tiny", {"task": "token_classification"}),
    },
    "worst_layer": {"onnx": ("press-int4", "tiny", {})},
}

#: numbers that a metric cannot measure of a format: a folder without genai_config.json gives no answers
LEFT_OUT: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("divergence", "hf"): ("generation_agreement", "looping_answers", "stop_tokens_missing"),
}

#: sampler -> parameters with which it is tried, parameters that it refuses
SAMPLERS: Mapping[str, tuple[Parameters, Parameters]] = {
    "grid": ({}, {"seed": 1}),
    "nsga2": ({"population": 4}, {"population": "many"}),
    "random": ({}, {"startup": 1}),
    "tpe": ({"startup": 2}, {"startup": "none"}),
}

#: system -> parameters with which jobs are done there; those that are not here need more than this machine
SYSTEMS: Mapping[str, Parameters] = {
    "isolated_ort": {"path": str(Path(sys.executable).parent)},
    "local": {},
    "python_environment": {"path": str(Path(sys.executable).parent)},
}

#: system -> parameters that it refuses
REFUSED_SYSTEMS: Mapping[str, Parameters] = {
    "azure_ml": {"cluster": "c"},
    "docker": {"imagee": "i"},
    "isolated_ort": {"pythonpath": "p"},
    "local": {"hosts": 2},
    "python_environment": {"pythonpath": "p"},
    "ray": {"addres": "auto"},
}


def missing(kind: str, name: str, accepts: tuple[str, ...] = ()) -> str:
    """What a part lacks here, as a sentence that says what to add; empty where nothing is missing."""
    of_pass = {format for format, what in _formats_of_passes() if what == name}
    entries = {
        "passes": (of_pass, "tests/end_to_end/every_pass.py: PASSES"),
        "data": (set(DATA.get(name, ())), "tests/parts/examples.py: DATA"),
        "metrics": (set(METRICS.get(name, ())), "tests/parts/examples.py: METRICS"),
    }
    refused = {
        "passes": ("REFUSED_PASSES", REFUSED_PASSES),
        "data": ("REFUSED_DATA", REFUSED_DATA),
        "samplers": ("SAMPLERS", SAMPLERS),
        "systems": ("REFUSED_SYSTEMS", REFUSED_SYSTEMS),
    }
    if kind in entries:
        found, where = entries[kind]
        for one in accepts:
            if one not in found:
                return f"{where} lacks '{name}' on a model of the format {one}: name a source and parameters"
    if kind in refused and name not in refused[kind][1]:
        return f"tests/parts/examples.py: {refused[kind][0]} lacks '{name}': name a request that it refuses"
    return ""


def _formats_of_passes() -> list[tuple[str, str]]:
    return [(format_of(model), what) for what, model, _ in PASSES.values()]


def format_of(name: str) -> str:
    """The format of a source, or of the result of an example of a pass."""
    from coldpress import parts

    if name in PASSES:
        return str(parts.find("passes", PASSES[name][0]).produces)
    kinds = {"tiny": "hf", "tiny.gguf": "gguf", "multimodal": "multimodal", "module.py": "script", "module.pt2": "pt2"}
    return {**kinds, "module.pt": "torchscript"}.get(name, "onnx")
