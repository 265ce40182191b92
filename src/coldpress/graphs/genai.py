"""genai_config.json: what onnxruntime-genai must know to generate with a decoder.

Reference: https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.graphs.capture.captured import Captured
from coldpress.graphs.positions import HIDDEN_STATES

#: model types with a meaning of their own in onnxruntime-genai; all others run as its generic "decoder"
_OWN_TYPES = {
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "olmo",
    "smollm3",
}
#: drafts: the four tokens that followed when the last three were seen before. Fewer seen, or more drafted, is slower
#: where nothing repeats
_SPECULATION = {"ngram_size": 4, "max_draft_tokens": 4}
_PROVIDER_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "cpu": [],
    "cuda": [{"cuda": {"enable_cuda_graph": "0"}}],
    "dml": [{"dml": {}}],
    "webgpu": [{"webgpu": {}}],
    "trt-rtx": [{"NvTensorRtRtx": {}}],
}


def write_genai_config(captured: Captured, folder: Path, output: Path, request: Mapping[str, Any]) -> None:
    """Write ``genai_config.json`` for a captured decoder; nothing for models that are no decoders.

    ``request``: what the graph worker was asked for. Its ``search`` goes over the model's own settings of generation.
    """
    if "model" not in captured.components:
        return
    graph = captured.components["model"].graph
    inputs = [value.name for value in graph.inputs]
    if "past_key_values.0.key" not in inputs:
        return
    generation = _json(folder / "generation_config.json")
    config, hf = captured.config, captured.hf_config
    tokens = {name: _first_known(name, generation, hf) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    in_place = any(node.op_type == "GroupQueryAttention" for node in graph)
    heads, head_size = (int(graph.inputs[inputs.index("past_key_values.0.key")].shape[axis]) for axis in (1, 3))
    context = int(getattr(config, "max_position_embeddings", 0) or 2048)
    model = {
        "type": hf.get("model_type") if hf.get("model_type") in _OWN_TYPES else "decoder",
        "context_length": context,
        "vocab_size": int(config.vocab_size),
        **_token_ids(tokens),
        "decoder": {
            "session_options": {
                "log_id": "onnxruntime-genai",
                "provider_options": _PROVIDER_OPTIONS.get(request["provider"], []),
            },
            "filename": request.get("filename", "model.onnx"),
            "head_size": head_size,
            "hidden_size": int(config.hidden_size),
            "num_attention_heads": int(config.num_attention_heads),
            "num_hidden_layers": int(config.num_hidden_layers),
            "num_key_value_heads": heads,
            "inputs": _input_names(inputs),
            "outputs": {
                "logits": "logits",
                **({"hidden_states": HIDDEN_STATES} if any(one.name == HIDDEN_STATES for one in graph.outputs) else {}),
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    _check_numbers(folder, generation, tokens)
    own = {"max_length": context, "past_present_share_buffer": in_place, **_search(generation)}
    speculation = {"speculative": _SPECULATION} if request["logits"] == "speculation" else {}
    (output / "genai_config.json").write_text(
        json.dumps({"model": model, "search": {**own, **request.get("search", {})}, **speculation}, indent=2),
        encoding="utf-8",
    )


def _json(file: Path) -> dict[str, Any]:
    """What a file holds, if there is one. Raises ColdpressError for one that is no JSON object."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ColdpressError(f"{file} is not valid JSON: {error}", hint=_AGAIN) from error
    if not isinstance(found, dict):
        raise ColdpressError(f"{file} is no JSON object", hint=_AGAIN)
    return found


_AGAIN = "download or copy it again, or delete it"


def _check_numbers(folder: Path, generation: dict[str, Any], tokens: dict[str, Any]) -> None:
    """Raise ColdpressError for settings with which onnxruntime-genai would not open the model."""
    ids = {name: value if isinstance(value, list) else [value] for name, value in tokens.items() if value is not None}
    wrong = {name: tokens[name] for name, values in ids.items() if not all(type(value) is int for value in values)}
    numbers = {name: generation[name] for name in _SEARCHED if generation.get(name) is not None}
    wrong |= {name: value for name, value in numbers.items() if type(value) not in (int, float)}
    for name, value in wrong.items():
        raise ColdpressError(
            f"{folder}: generation_config.json or config.json has the {name} {value!r}, which is no number", hint=_AGAIN
        )


_SEARCHED = ("temperature", "top_p", "top_k", "repetition_penalty")


def _first_known(name: str, *configs: dict[str, Any]) -> Any:
    return next((config[name] for config in configs if config.get(name) is not None), None)


def _token_ids(tokens: dict[str, Any]) -> dict[str, Any]:
    """The special tokens; onnxruntime-genai wants a pad token, so the end token stands in where there is none."""
    if tokens["pad_token_id"] is None:
        end = tokens["eos_token_id"]
        tokens["pad_token_id"] = end[0] if isinstance(end, list) else end
    return {name: value for name, value in tokens.items() if value is not None}


def _input_names(inputs: list[str]) -> dict[str, str]:
    names: dict[str, str] = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    return {**names, "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}


def _search(generation: dict[str, Any]) -> dict[str, Any]:
    """The source's sampling settings, where it has some; greedy otherwise."""
    search: dict[str, Any] = {"do_sample": bool(generation.get("do_sample", False)), "num_beams": 1}
    for name in _SEARCHED:
        if generation.get(name) is not None:
            search[name] = generation[name]
    return search
