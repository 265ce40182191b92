"""A zip file whose entries all lie below one folder: the same bytes for the same content."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from coldpress.errors import ColdpressError
from coldpress.models.model import files_of

_PACKED_ALREADY = (".data", ".safetensors", ".onnx", ".onnx_adapter", ".gguf")
_FIRST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20
_OF_PACKAGES = ("server", "serve.py", "Dockerfile", "requirements.txt")
_REPORTS = ("report.json", "report.html", "workflow.yaml", "README.md")

#: what lies in an archive: names below its folder -> a file, or a text
Content = Mapping[str, "Path | str"]


def write_archive(archive: Path, content: Content, root: str | None = None) -> None:
    """Write a zip file whose folder is called as itself, or ``root``.

    Raises ColdpressError for a name that leads out of that.
    """
    folder = root or archive.stem
    for name in content:
        check_name(name)
    with zipfile.ZipFile(archive, "w") as packed:
        for name in sorted(content):
            _write(packed, f"{folder}/{name}", content[name])


def model_files(folder: Path, with_report: bool = True) -> dict[str, Path | str]:
    """The files of a result by name, without packages that were written before; with what describes it, or without."""
    left_out = (*_OF_PACKAGES, *(() if with_report else _REPORTS))
    names = {file.relative_to(folder).as_posix(): file for file in files_of(folder) if file.suffix != ".zip"}
    return {name: file for name, file in names.items() if name.partition("/")[0] not in left_out}


def check_name(name: str) -> None:
    """Refuse a name that is none of a file below the folder it stands in, on any system."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or ":" in parts[0] or ".." in parts or "\0" in name:
        raise ColdpressError(f"'{name}' leads out of the archive", hint="rename the file")


def _write(packed: zipfile.ZipFile, name: str, content: Path | str) -> None:
    entry = zipfile.ZipInfo(name, _FIRST_ZIP_DATE)
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(_PACKED_ALREADY) else zipfile.ZIP_DEFLATED
    if isinstance(content, str):
        packed.writestr(entry, content)
        return
    entry.file_size = content.stat().st_size
    with content.open("rb") as source, packed.open(entry, "w") as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
