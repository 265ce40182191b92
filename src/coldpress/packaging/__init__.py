"""The result in forms that can be taken away: an archive with sample code, or an image that serves the model.

Both are written into the output folder, from files that are in it; requirements name the versions that were tested
here.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.model import files_of
from coldpress.report.card import sample_code
from coldpress.serving import prompts
from coldpress.workflow import Package

_RUNTIME = {
    "onnxruntime-genai": ("onnxruntime-genai",),
    "onnxruntime": ("onnxruntime", "numpy"),
    "transformers": ("transformers", "compressed-tensors", "torch"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]*", re.ASCII)
_PACKED_ALREADY = (".data", ".safetensors", ".onnx", ".gguf")
_FIRST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_REPORTS = ("report.json", "report.html", "workflow.yaml", "README.md")
_SERVER = (Path(__file__).with_name("serve.py"), Path(prompts.__file__))


def check_package(package: Package) -> None:
    """Refuse names that lead out of the output folder or into a Dockerfile's next line, and files that are missing."""
    if not _NAME.fullmatch(package.name):
        raise ColdpressError(f"'{package.name}' is no name for a file", hint="use letters, digits, '.', '-' and '_'")
    if not _IMAGE.fullmatch(package.base_image):
        raise ColdpressError(f"'{package.base_image}' is no name of an image", hint="such as python:3.12-slim")
    if package.requirements_file and not Path(package.requirements_file).is_file():
        raise ColdpressError(f"requirements_file '{package.requirements_file}' does not exist")


def write_package(package: Package, folder: Path, report: Mapping[str, Any]) -> None:
    """Add a package to ``folder``, which holds the model and what belongs to it."""
    requirements = _requirements(package, folder)
    if package.type == "zipfile":
        _write_archive(folder / f"{package.name}.zip", folder, {"requirements.txt": requirements, **_added(report)})
        return
    entries = [entry for entry in sorted(folder.iterdir()) if entry.suffix != ".zip" and entry.name not in _REPORTS]
    (folder / "Dockerfile").write_text(_dockerfile(package, entries), encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    for file in _SERVER:
        (folder / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")


def _write_archive(archive: Path, folder: Path, texts: Mapping[str, str]) -> None:
    """The same bytes for the same files: names in order, and no dates."""
    files = [file for file in files_of(folder) if file.suffix != ".zip" and file.name not in texts]
    with zipfile.ZipFile(archive, "w") as packed:
        for file in files:
            entry = _entry(archive.stem, file.relative_to(folder).as_posix(), file.suffix in _PACKED_ALREADY)
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, packed.open(entry, "w") as target:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
        for name, text in texts.items():
            packed.writestr(_entry(archive.stem, name, False), text)


def _entry(root: str, name: str, stored: bool) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(f"{root}/{name}", _FIRST_ZIP_DATE)
    entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _added(report: Mapping[str, Any]) -> dict[str, str]:
    return {"sample.py": sample_code(report), "report.json": json.dumps(report, indent=1, ensure_ascii=False)}


def _requirements(package: Package, folder: Path) -> str:
    """What the sample code and the server import, in the versions that are installed here."""
    lines = [f"{name}=={found}" for name in _RUNTIME[_runtime(folder)] if (found := _version(name))]
    if package.requirements_file:
        lines += Path(package.requirements_file).read_text(encoding="utf-8").splitlines()
    return "\n".join(lines) + "\n"


def _runtime(folder: Path) -> str:
    if any((place / "genai_config.json").exists() for place in (folder, folder / "model")):
        return "onnxruntime-genai"
    return "onnxruntime" if any(folder.rglob("*.onnx")) else "transformers"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _dockerfile(package: Package, entries: list[Path]) -> str:
    files = [entry.name for entry in entries if entry.is_file()]
    copies = [["requirements.txt", *(file.name for file in _SERVER), "./"]]
    folders = [entry.name for entry in entries if entry.is_dir()]
    if folders == ["model"]:  # with its adapters
        copies.append(["model/", "./model/"])
    else:
        copies += [[*files, "./model/"], *([name, f"./model/{name}"] for name in folders)]
    copy = [f"COPY {json.dumps(names)}" for names in copies]
    lines = [
        f"# docker build -t {package.name.lower()} . && docker run -p 8000:8000 {package.name.lower()}",
        f"FROM {package.base_image}",
        "WORKDIR /app",
        copy[0],
        "RUN pip install --no-cache-dir -r requirements.txt",
        *copy[1:],
        "USER nobody",
        "EXPOSE 8000",
        'CMD ["python", "serve.py"]',
    ]
    return "\n".join(lines) + "\n"
