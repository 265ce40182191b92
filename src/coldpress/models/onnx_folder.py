"""The folder of an ONNX model: which file in it is the graph, and what genai_config.json says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import ColdpressError

if TYPE_CHECKING:
    import onnx


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


def graphs_named(config: Any) -> Iterator[str]:
    """The files that genai_config.json, or a part of it, names as graphs."""
    inner = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    name = config.get("filename") if isinstance(config, Mapping) else None
    if isinstance(name, str) and name.endswith(".onnx"):
        yield name
    for one in inner:
        yield from graphs_named(one)


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


def has_caches(path: Path) -> bool:
    """Whether a model generates: it has settings of onnxruntime-genai, or a graph that takes keys and values of tokens
    before."""
    path = Path(path)
    if path.is_dir() and (path / "genai_config.json").is_file():
        return True
    graphs = [path] if path.is_file() else sorted(path.rglob("*.onnx"))
    inputs = [value.name for file in graphs for value in _read(file).graph.input]
    return any(name.startswith("past") for name in inputs)


def _read(file: Path) -> onnx.ModelProto:
    """The graph in a file, without the tensors in others. ColdpressError for a file that is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise ColdpressError(
            f"{file} cannot be read as an ONNX model: {error}", hint="export or download it again"
        ) from error


def stop_tokens(settings: Mapping[str, Any]) -> set[int]:
    """The ids under ``eos_token_id``, which may be one number, a list, or absent."""
    ids = settings.get("eos_token_id")
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
