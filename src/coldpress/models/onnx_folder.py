"""The folder of an ONNX model: which file in it is the graph, and what genai_config.json says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError


def read_genai_config(folder: Path) -> dict[str, Any]:
    """The folder's genai_config.json; empty when there is none."""
    file = Path(folder) / "genai_config.json"
    if not file.is_file():
        return {}
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ColdpressError(f"{file} is not JSON: {error}") from error
    return config


def graph_file(path: Path) -> Path:
    """The graph of a model: the file itself, the decoder that genai_config.json names, model.onnx, or the only one."""
    path = Path(path)
    if path.is_file():
        return path
    name: str = read_genai_config(path).get("model", {}).get("decoder", {}).get("filename", "model.onnx")
    if (path / name).is_file():
        return path / name
    graphs = sorted(path.glob("*.onnx"))
    if len(graphs) != 1 or (path / "genai_config.json").is_file():
        found = f"; found: {', '.join(graph.name for graph in graphs)}" if graphs else ""
        raise ColdpressError(f"no {name} in {path}{found}")
    return graphs[0]


def stop_tokens(settings: Mapping[str, Any]) -> set[int]:
    """The ids under ``eos_token_id``, which may be one number, a list, or absent."""
    ids = settings.get("eos_token_id")
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
