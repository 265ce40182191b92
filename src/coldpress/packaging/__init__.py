"""The result in forms that can be taken away: archives with code that runs it, or an image that serves it.

All are written into the output folder, from files that are in it; requirements name the versions that were tested here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.packaging import image, mlflow, model_package
from coldpress.packaging.archive import Content, model_files, write_archive
from coldpress.packaging.others import config_of_transformers, inference_model
from coldpress.report.card import sample_code
from coldpress.workflow import Package

_RUNTIME = {
    "onnxruntime-genai": ("onnxruntime-genai",),
    "onnxruntime": ("onnxruntime", "numpy"),
    "transformers": ("transformers", "compressed-tensors", "torch"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]*", re.ASCII)
_SAMPLES = Path(__file__).with_name("samples")
#: the sample that knows nothing of adapters: transformers.js wants a value for each input of a graph
_WITHOUT_ADAPTERS = "chat.mjs"


def check_package(package: Package) -> None:
    """Refuse names that lead out of the output folder or into a Dockerfile's next line, files that are missing, and
    variants that are no results."""
    for name in (package.name, *package.variants):
        if not _NAME.fullmatch(name):
            raise ColdpressError(f"'{name}' is no name for a file", hint="use letters, digits, '.', '-' and '_'")
    if not _IMAGE.fullmatch(package.base_image):
        raise ColdpressError(f"'{package.base_image}' is no name of an image", hint="such as python:3.12-slim")
    if package.requirements_file and not Path(package.requirements_file).is_file():
        raise ColdpressError(f"requirements_file '{package.requirements_file}' does not exist")
    if package.variants and package.type != "model_package":
        raise ColdpressError(f"a package of type {package.type} has no variants", hint="use type: model_package")
    for output in package.variants.values():
        model_package.read_variant(Path(output).expanduser())


def write_package(package: Package, folder: Path, report: Mapping[str, Any]) -> None:
    """Add a package to ``folder``, which holds the model and what belongs to it."""
    if package.type == "dockerfile":
        _write_image(package, folder)
        return
    made = {"zipfile": _archive, "mlflow": _mlflow, "model_package": _variants}[package.type]
    root = f"{package.name}.ortpackage" if package.type == "model_package" else package.name
    write_archive(folder / f"{package.name}.zip", made(package, folder, report), root)


def _archive(package: Package, folder: Path, report: Mapping[str, Any]) -> Content:
    added: dict[str, Path | str] = {
        "requirements.txt": _requirements(package, folder, _RUNTIME[_runtime(folder)]),
        "sample.py": sample_code(report),
        "report.json": json.dumps(report, indent=1, ensure_ascii=False),
    }
    if (place := _chat_folder(folder)) is not None:
        beside = "" if place == folder else f"{place.name}/"
        added |= {f"{beside}{name}": content for name, content in _for_others(package.name, place).items()}
    return {**model_files(folder), **added}


def _for_others(name: str, folder: Path) -> dict[str, Path | str]:
    """What programs of others look for beside a chat model, and samples in their languages."""
    has_adapters = any(folder.glob("*.onnx_adapter"))
    samples = [file for file in sorted(_SAMPLES.iterdir()) if not (has_adapters and file.name == _WITHOUT_ADAPTERS)]
    found: dict[str, Path | str] = {f"samples/{file.name}": file for file in samples}
    found["inference_model.json"] = json.dumps(inference_model(name, folder), indent=1, ensure_ascii=False)
    if not (has_adapters or (folder / "config.json").exists()):
        found["config.json"] = json.dumps(config_of_transformers(folder), indent=1)
    return found


def _mlflow(package: Package, folder: Path, report: Mapping[str, Any]) -> Content:
    chat = _chat_folder(folder)
    if _runtime(folder) == "transformers":
        raise ColdpressError("mlflow: only ONNX models are written in its format", hint="press the model first")
    requirements = _requirements(package, folder, _RUNTIME[_runtime(folder)])
    return mlflow.content(model_files(chat or folder, with_report=False), requirements, chat is not None)


def _variants(package: Package, folder: Path, report: Mapping[str, Any]) -> Content:
    place, target = _chat_folder(folder), report.get("target", {})
    if place is None:
        raise ColdpressError("model_package: only chat models have variants", hint="use type: zipfile")
    own = model_package.Variant(place, target["provider"], target["device"])
    others = {name: model_package.read_variant(Path(one).expanduser()) for name, one in package.variants.items()}
    if own.device in others:
        raise ColdpressError(f"variants: this result is called '{own.device}' itself", hint="use another name")
    return model_package.content({own.device: own, **others})


def _write_image(package: Package, folder: Path) -> None:
    chats = _chat_folder(folder) is not None
    names = {name.partition("/")[0] for name in model_files(folder, with_report=False)}
    entries = [folder / name for name in sorted(names)]
    for name, file in image.server_files(chats).items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    (folder / "Dockerfile").write_text(
        image.dockerfile(package.name, package.base_image, entries, chats), encoding="utf-8"
    )
    needed = image.NEEDS if chats else _RUNTIME[_runtime(folder)]
    (folder / "requirements.txt").write_text(_requirements(package, folder, needed), encoding="utf-8")


def _chat_folder(folder: Path) -> Path | None:
    """Where in a result the chat model lies; None for a result that is none."""
    return next((place for place in (folder, folder / "model") if (place / "genai_config.json").exists()), None)


def _requirements(package: Package, folder: Path, needed: tuple[str, ...]) -> str:
    """What is needed, in the versions that are installed here, if they are."""
    lines = [f"{name}=={found}" if (found := _version(name)) else name for name in needed]
    if package.requirements_file:
        lines += Path(package.requirements_file).read_text(encoding="utf-8").splitlines()
    return "\n".join(lines) + "\n"


def _runtime(folder: Path) -> str:
    if _chat_folder(folder) is not None:
        return "onnxruntime-genai"
    return "onnxruntime" if any(folder.rglob("*.onnx")) else "transformers"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
