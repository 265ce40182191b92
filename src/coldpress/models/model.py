"""A model on disk: a read-only folder or file, its format, and a key for its content."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.models.companions import companions
from coldpress.models.digests import digest, link
from coldpress.models.provenance import Provenance

#: formats of modules of PyTorch that are no checkpoint: a script that makes one, a program of torch.export, TorchScript
MODULES = ("script", "pt2", "torchscript")
FORMATS = ("hf", "multimodal", "onnx", "gguf", "adapter", *MODULES, "openvino", "mlflow")
#: marks a folder as a cache, for everybody
CACHE_TAG = "CACHEDIR.TAG"
_SHARED = (".onnx", ".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Model:
    """A model that nobody changes: passes read one and write another.

    ``path`` is a folder (``hf``, ``onnx``) or a file (``gguf``). ``key`` identifies the content: two models
    with equal keys are interchangeable. ``provenance``: what is known of how it came about.
    """

    path: Path
    format: str
    key: str
    provenance: Provenance = Provenance()

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ColdpressError(f"unknown model format '{self.format}'", hint=did_you_mean(self.format, FORMATS))

    @property
    def hub_id(self) -> str | None:
        """What the hub calls the model that this one was made of; None for one of this machine."""
        source = self.provenance.source
        return source.name if source.origin in ("hub", "wheel") else None


def files_of(path: Path) -> Iterator[Path]:
    """The regular files of a model in a fixed order.

    Hidden files and folders are not part of it, nor are folders with a report of their own, which are other models, and
    caches.
    """
    if path.is_file():
        yield path
        return
    others = {mark.parent for name in ("report.json", CACHE_TAG) for mark in path.rglob(name)} - {path}
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
    """Share the bytes where the file system can; who reads a shared file notices by its hash when it was changed.

    Files with tensors of ONNX graphs, whatever their name, are copied: onnx refuses to load one that has a second name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix in _SHARED:
        try:
            link(source, target)
            return
        except OSError:  # another file system, or one that cannot
            pass
    shutil.copy2(source, target)


def content_key(path: Path) -> str:
    """A key for the content of a file or a folder: the names in it and what the files hold.

    It knows no place: neither the folders around ``path``, nor times, nor the machine. Of a graph and of a script what
    belongs to them counts, too: see `parts_of`.
    """
    root = path if path.is_dir() else path.parent
    listed = [[file.relative_to(root).as_posix(), digest(file)] for file in parts_of(path)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def parts_of(path: Path) -> list[Path]:
    """All files that a path stands for: those of a folder; a file with those that it needs beside it."""
    return [path, *companions(path)] if path.is_file() else list(files_of(path))
