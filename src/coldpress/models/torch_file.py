"""What a file of PyTorch holds, told without torch, which would run what is pickled in it."""

from __future__ import annotations

import zipfile
from pathlib import Path


def kind_of(file: Path) -> str | None:
    """The format of a file with a module: script, pt2 or torchscript; None for another one."""
    if file.suffix == ".py":
        return "script"
    if not file.is_file() or not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if {"archive_format", "serialized_exported_program.json"} & {*names, *archive.namelist()}:
        return "pt2"
    return "torchscript" if "constants.pkl" in names and any(name.startswith("code/") for name in names) else None
