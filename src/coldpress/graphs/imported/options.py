"""Session options beside a model: in session_options.json, and in the genai_config.json of a chat model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coldpress.graphs.session import OPTIONS_FILE, read_options
from coldpress.models.onnx_graphs import copy_model

LEVELS = ("disable_all", "basic", "extended", "layout", "all")
MODES = ("sequential", "parallel")
_GENAI = "genai_config.json"
_GENAI_LEVELS = {"disable_all": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED",
                 "layout": "ORT_ENABLE_LAYOUT", "all": "ORT_ENABLE_ALL"}  # fmt: skip


def write_options(path: Path, output: Path, options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Write a model with session options to ``output``; those that were set before and are not in ``options`` stay.

    Returns all options, and what onnxruntime-genai has no place for.
    """
    copy_model(path, output, without=(OPTIONS_FILE, _GENAI))
    merged = {**(read_options(path) if path.is_dir() else {}), **options}
    (output / OPTIONS_FILE).write_text(json.dumps(merged, indent=1), encoding="utf-8")
    if path.is_dir() and (path / _GENAI).is_file():
        return merged, _write_genai(path / _GENAI, output / _GENAI, options)
    return merged, []


def _write_genai(source: Path, target: Path, options: dict[str, Any]) -> list[str]:
    """Put the options where onnxruntime-genai looks for them; returns what it has no place for."""
    config = json.loads(source.read_text(encoding="utf-8"))
    own: dict[str, Any] = dict(options)
    of_providers = own.pop("provider_options", {})
    left_out = (
        [f"onnxruntime-genai has no execution mode; {OPTIONS_FILE} has it"] if own.pop("execution_mode", None) else []
    )
    if "graph_optimization_level" in own:
        own["graph_optimization_level"] = _GENAI_LEVELS[own["graph_optimization_level"]]
    own |= own.pop("config_entries", {})
    for part in config.get("model", {}).values():
        if isinstance(part, dict) and "session_options" in part:
            part["session_options"] |= own
            for provider, given in of_providers.items():
                _set_provider_options(part["session_options"], provider, given)
    target.write_text(json.dumps(config, indent=4), encoding="utf-8")
    return left_out


#: execution providers as onnxruntime-genai names them
_GENAI_PROVIDERS = {
    "CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml", "WebGpuExecutionProvider": "webgpu",
    "NvTensorRTRTXExecutionProvider": "NvTensorRtRtx", "QNNExecutionProvider": "qnn",
    "OpenVINOExecutionProvider": "OpenVINO",
}  # fmt: skip


def _set_provider_options(session: dict[str, Any], provider: str, options: dict[str, str]) -> None:
    """Set options of a provider where onnxruntime-genai reads them; the processor has none."""
    if (name := _GENAI_PROVIDERS.get(provider)) is None:
        return
    known = session.setdefault("provider_options", [])
    entry = next((one for one in known if name in one), None)
    if entry is None:
        known.append({name: dict(options)})
    else:
        entry[name] = {**entry[name], **options}
