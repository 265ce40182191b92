"""A Dockerfile beside the model, and the server that the image starts.

A chat model is served as ``coldpress serve`` does it, by the very files of it: those that the server imports. Other
models take arrays (``serve.py``).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import coldpress

#: what a chat model's image runs
_STARTED = "coldpress.serving.http.image"
_SOURCE = Path(coldpress.__file__).parents[1]
#: below the output folder, where the server of a chat model lies
SERVER = "server"
#: of the distributions that the server's files name, those that serving needs
NEEDS = (
    "onnxruntime-genai", "onnxruntime", "numpy", "onnx", "onnx-ir", "platformdirs", "blake3", "tokenizers",
    "fastapi", "prometheus-client", "uvicorn",
)  # fmt: skip
_ARRAYS = Path(__file__).with_name("serve.py")
_HEALTHY = "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '8000') + '/health')"


def server_files(chats: bool) -> dict[str, Path]:
    """The files of the server, by their names below the output folder."""
    if not chats:
        return {_ARRAYS.name: _ARRAYS}
    modules = [file for module in sorted(_imported(_STARTED)) if (file := _file(module))]
    pages = [page for file in modules for page in file.parent.glob("*.html") if file.name == "__init__.py"]
    return {f"{SERVER}/{file.relative_to(_SOURCE).as_posix()}": file for file in [*modules, *pages]}


def dockerfile(name: str, base_image: str, entries: Sequence[Path], chats: bool) -> str:
    """``entries``: what of the output folder belongs to the model."""
    files = [entry.name for entry in entries if entry.is_file()]
    folders = [entry.name for entry in entries if entry.is_dir()]
    if folders == ["model"]:  # with its adapters
        copies = [["model/", "./model/"]]
    else:
        copies = [[*files, "./model/"], *([folder, f"./model/{folder}"] for folder in folders)]
    server = [f"{SERVER}/", "./"] if chats else [_ARRAYS.name, "./"]
    started = ["python", "-m", _STARTED, name] if chats else ["python", _ARRAYS.name]
    lines = [
        f"# docker build -t {name.lower()} . && docker run -p 8000:8000 {name.lower()}",
        f"FROM {base_image}",
        "WORKDIR /app",
        'COPY ["requirements.txt", "./"]',
        "RUN pip install --no-cache-dir -r requirements.txt",
        *(f"COPY {json.dumps(names)}" for names in (server, *copies)),
        "USER nobody",
        "EXPOSE 8000",
        *([f"HEALTHCHECK CMD {json.dumps(['python', '-c', _HEALTHY])}"] if chats else []),
        f"CMD {json.dumps(started)}",
    ]
    return "\n".join(lines) + "\n"


def _imported(module: str) -> set[str]:
    """A module of ours and all of ours that it imports, with the packages that they lie in."""
    found, left = set[str](), [module]
    while left:
        name = left.pop()
        file = _file(name)
        if file is None or name in found:
            continue
        found.add(name)
        left += [*_names_in(file), *([name.rpartition(".")[0]] if "." in name else [])]
    return found


def _names_in(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _file(module: str) -> Path | None:
    """The file of a module of ours; None for what is none."""
    if module.partition(".")[0] != coldpress.__name__:
        return None
    place = _SOURCE.joinpath(*module.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)
