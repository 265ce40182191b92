"""Writing a quantized Hugging Face folder: layer by layer into files of their own, at the end one checkpoint of them
all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Checkpoint, Span, read_header, read_metadata
from coldpress.models.packed import awq, compressed_tensors, gptq
from coldpress.models.provenance import QuantizedLayer
from coldpress.quant.grid import Codes, Grid

FORMATS = ("compressed-tensors", "gptq", "awq")
_SHARD_BYTES = 2 << 30
_NOT_COPIED = (".safetensors", ".bin", ".gguf", ".html", ".yaml", ".onnx", ".data")
_OWN_FILES = ("config.json", "report.json", "README.md", "model.safetensors.index.json")
_COPY_BYTES = 1 << 24


def packed_tensors(form: str, module: str, codes: Codes, columns: int, scale_dtype: str) -> dict[str, NDArray[Any]]:
    """The tensors of one quantized module; ColdpressError for what the format cannot hold."""
    if form == "gptq":
        return gptq.tensors_of(module, codes, columns, _gptq_version(codes.grid))
    if form == "awq":
        return awq.tensors_of(module, codes, columns)
    return compressed_tensors.tensors_of(module, codes, columns, scale_dtype)


def packed_config(form: str, grids: Mapping[str, Grid], left_alone: Sequence[str]) -> dict[str, Any]:
    """The ``quantization_config`` of modules with these grids."""
    if form == "gptq":
        return gptq.config_of(grids, left_alone, _gptq_version(next(iter(grids.values()))))
    return (awq if form == "awq" else compressed_tensors).config_of(grids, left_alone)


def _gptq_version(grid: Grid) -> str:
    """The second version of the format holds a zero point of 0; the first is what more readers know."""
    return gptq.V1 if grid.symmetric else gptq.V2


class LayerFiles:
    """Finished layers in a folder: one file each with tensors and what rounding did to each module, complete or
    absent."""

    def __init__(self, folder: Path):
        self.folder = folder

    def quantized(self, layer: str) -> list[QuantizedLayer] | None:
        """The modules of a finished layer; None for one that is not, or whose file is cut off or of another version."""
        import msgspec

        try:
            read_header(self._file(layer))
            return msgspec.json.decode(read_metadata(self._file(layer))["quantized"], type=list[QuantizedLayer])
        except (FileNotFoundError, ValueError, KeyError, msgspec.MsgspecError, ColdpressError):
            return None

    def put(self, layer: str, tensors: Mapping[str, NDArray[Any]], quantized: Sequence[QuantizedLayer]) -> None:
        from safetensors.numpy import save_file

        scratch = self._file(layer).with_suffix(".part")
        # safetensors writes the bytes of an array as they lie, whatever its strides
        whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(whole, scratch, metadata={"quantized": json.dumps([asdict(one) for one in quantized])})
        os.replace(scratch, self._file(layer))

    def tensors(self, layer: str) -> dict[str, Span]:
        return read_header(self._file(layer))

    def _file(self, layer: str) -> Path:
        return self.folder / f"{layer}.layer"


def assemble(
    source: Path, layers: LayerFiles, names: Sequence[str], grids: Mapping[str, Grid], form: str, folder: Path
) -> None:
    """Write the checkpoint: the layers' tensors, and the source's where no layer has made them anew.

    ``grids``: of each packed module; ``form``: one of `FORMATS`.
    """
    made = {name: span for layer in names for name, span in layers.tensors(layer).items()}
    packed = {f"{module}.weight" for module in grids}
    stored = Checkpoint(source).tensors
    kept = {name: span for name, span in stored.items() if name not in made and name not in packed}
    tensors = {**kept, **made}
    write_checkpoint({name: tensors[name] for name in sorted(tensors)}, folder)
    matrices = [name.removesuffix(".weight") for name, span in tensors.items() if len(span.shape) == 2]
    left = {"lm_head", *(name for name in matrices if f"{name}.weight" in tensors)} - set(grids)
    write_config(source, folder, grids, form, sorted(left))
    copy_other_files(source, folder)


def copy_other_files(source: Path, folder: Path) -> None:
    """The tokenizer and whatever else belongs to a checkpoint but is not weights or what is written anew."""
    for file in source.iterdir():
        if file.is_file() and file.suffix not in _NOT_COPIED and file.name not in _OWN_FILES:
            shutil.copyfile(file, folder / file.name)


def write_config(source: Path, folder: Path, grids: Mapping[str, Grid], form: str, left_alone: Sequence[str]) -> None:
    """config.json of the source, with what is packed how; ``left_alone``: the modules with a float matrix."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if grids:
        config["quantization_config"] = packed_config(form, grids, left_alone)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text, encoding="utf-8")


def write_checkpoint(tensors: Mapping[str, Span], folder: Path) -> None:
    """Copy tensors into safetensors files of at most two gigabytes, with their index.

    There is an index even for one file: it tells readers that other files in the folder are no part of the checkpoint.
    """
    shards: list[dict[str, Span]] = [{}]
    size = 0
    for name, span in tensors.items():
        if shards[-1] and size + span.bytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = span
        size += span.bytes
    many = len(shards) > 1
    names = [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" if many else "model.safetensors" for i in range(len(shards))
    ]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(shard, folder / name)
    total = sum(span.bytes for span in tensors.values())
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_shard(tensors: Mapping[str, Span], file: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, span in tensors.items():
        start, end = end, end + span.bytes
        header[name] = {"dtype": span.dtype, "shape": list(span.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for span in tensors.values():
            data = span.view().reshape(-1).view(np.uint8)
            for start in range(0, len(data), _COPY_BYTES):
                stream.write(data[start : start + _COPY_BYTES].data)
