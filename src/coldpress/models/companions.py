"""Files that belong to another one and lie beside it: the tensors of a graph, the modules that a script imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from coldpress.models.external_data import files_beside


def companions(file: Path) -> list[Path]:
    """The files without which one is not whole, in the folder around it; in a fixed order."""
    if file.suffix == ".onnx":
        return files_beside(file)
    if file.suffix == ".py":
        found: set[Path] = set()
        _add_imported(file, found)
        return sorted(found - {file})
    return []


def _add_imported(script: Path, found: set[Path]) -> None:
    """Add a script and what it imports from its folder: modules, and packages with all their modules."""
    if script in found:
        return
    found.add(script)
    for name in _imported(script):
        package = script.parent / name
        for module in [package.with_suffix(".py")] if not package.is_dir() else sorted(package.rglob("*.py")):
            if module.is_file():
                _add_imported(module, found)


def _imported(script: Path) -> Iterator[str]:
    """The first names of all modules that a script imports, inside functions too; none of a script that is no
    Python."""
    try:
        tree = ast.parse(script.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
