"""A model on disk: a read-only folder or file, its format, and a key for its content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean

FORMATS = ("hf", "multimodal", "onnx", "gguf", "adapter", "pt2", "openvino", "mlflow")
_SAMPLE_BYTES = 1 << 16
_SHARED = (".onnx", ".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Model:
    """A model that nobody changes: passes read one and write another.

    ``path`` is a folder (``hf``, ``onnx``) or a file (``gguf``). ``key`` identifies the content: two models
    with equal keys are interchangeable. ``notes`` are JSON values that later steps and reports read,
    such as where the model came from or what a quantizer measured.
    """

    path: Path
    format: str
    key: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ColdpressError(f"unknown model format '{self.format}'", hint=did_you_mean(self.format, FORMATS))

    @property
    def hub_id(self) -> str | None:
        """What the hub calls the model that this one was made of; None for one of this machine."""
        return self.notes.get("source") if self.notes.get("origin") in ("hub", "wheel") else None


def files_of(path: Path) -> Iterator[Path]:
    """The regular files of a model in a fixed order.

    Hidden files and folders are not part of it, nor are folders with a report of their own: those are other models.
    """
    if path.is_file():
        yield path
        return
    others = {report.parent for report in path.rglob("report.json")} - {path}
    for entry in sorted(path.rglob("*")):
        is_hidden = any(part.startswith(".") for part in entry.relative_to(path).parts)
        if entry.is_file() and not is_hidden and others.isdisjoint(entry.parents):
            yield entry


def find_graphs(path: Path) -> dict[str, Path]:
    """The graphs of a model: the name each is written under, relative to the output, and its file.

    A folder's graphs keep their places; a single file becomes ``model.onnx``. Empty for a folder without graphs.
    """
    if path.is_file():
        return {"model.onnx": path}
    return {file.relative_to(path).as_posix(): file for file in files_of(path) if file.suffix == ".onnx"}


def link_or_copy(source: Path, target: Path) -> None:
    """Share the bytes where the file system can; who reads a shared file notices by its size and time when it was changed.

    Files with tensors of ONNX graphs, whatever their name, are copied: onnx refuses to load one that has a second name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix in _SHARED:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one that cannot
            pass
    shutil.copy2(source, target)


def content_key(path: Path) -> str:
    """A key for the content of a model.

    Hashing gigabytes would cost more than pressing them, so large files count by name, size, modification
    time and their first and last 64 KiB (a safetensors header, an ONNX graph); small files count whole.
    """
    digest = hashlib.sha256()
    for file in files_of(path):
        stat = file.stat()
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        whole = stat.st_size <= 2 * _SAMPLE_BYTES
        digest.update(json.dumps([name, stat.st_size, None if whole else stat.st_mtime_ns]).encode())
        with file.open("rb") as stream:
            digest.update(stream.read(2 * _SAMPLE_BYTES if whole else _SAMPLE_BYTES))
            if not whole:
                stream.seek(-_SAMPLE_BYTES, 2)
                digest.update(stream.read())
    return digest.hexdigest()
