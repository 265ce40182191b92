"""Writes docs/components.md: every component, and how far it is tested, by where tests and benchmarks name it.

A component is named by a text that is its name or class, or by an import of its file. Whether a comparison in such a
file is about that component cannot be seen from outside: a level says where to look. Nothing is typed by hand; a
component that no test compares with something shows up as such, and `tests/contracts/test_documentation.py` refuses it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coldpress import parts
from coldpress.parts import file_name

PAGE = Path(__file__).with_name("components.md")
_ROOT = Path(__file__).parents[1]
#: from the weakest to the strongest
LEVELS = ("builds", "runs", "parity", "real model", "measured")
#: calls and names that hold a result against another, or against what it must be
_COMPARES = {"assert_allclose", "allclose", "is_near", "approx", "array_equal", "assert_array_equal", "computed"}
#: files that put every component of a kind to work, and compare what comes of it
_TABLES = {"every_pass.py": "runs", "examples.py": "runs"}


@dataclass(frozen=True)
class Evidence:
    """What a file of tests or benchmarks says of the components that it names."""

    file: str
    level: str
    names: frozenset[str]


@cache
def evidence() -> tuple[Evidence, ...]:
    """All files of tests and benchmarks, with the strongest level that they show."""
    return tuple(
        _of_file(file) for folder in ("tests", "benchmarks") for file in sorted((_ROOT / folder).rglob("*.py"))
    )


def _of_file(file: Path) -> Evidence:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    place = file.relative_to(_ROOT).as_posix()
    return Evidence(place, _level(file, tree), frozenset(_names(tree, file.is_relative_to(_ROOT / "benchmarks"))))


def _level(file: Path, tree: ast.Module) -> str:
    if file.is_relative_to(_ROOT / "benchmarks"):
        return "measured" if (_ROOT / "benchmarks" / "results" / f"{file.stem}.json").exists() else "real model"
    if file.name in _TABLES:
        return _TABLES[file.name]
    called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    called |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    compares = bool(called & _COMPARES) or any(isinstance(node, ast.Compare) for node in _asserted(tree))
    return "parity" if compares else "runs"


def _asserted(tree: ast.Module) -> Iterator[ast.expr]:
    """What assertions assert."""
    return (node.test for node in ast.walk(tree) if isinstance(node, ast.Assert))


def _names(tree: ast.Module, in_benchmark: bool) -> Iterator[str]:
    """Texts, and modules of coldpress that are imported; in tests also keywords, as tables of cases have them.

    In benchmarks neither keys of mappings nor what is looked up in them: these are settings of models mostly.
    """
    settings: set[int] = set()
    if in_benchmark:
        settings |= {id(key) for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
        settings |= {id(node.slice) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in settings:
            yield node.value
            yield from node.value.split("::")
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.keyword) and node.arg and not in_benchmark:
            yield node.arg


def level_of(kind: str, name: str) -> tuple[str, str]:
    """How far a component is tested, and the file that shows it; a metric also by the tasks that compare with it,
    a task also by its classes of transformers, but for ``Model``, which every model's name ends with."""
    part = parts.find(kind, name)
    tasks = [parts.find("tasks", task) for task in parts.names("tasks")] if kind == "metrics" else []
    by_tasks = {file_name(one.__name__) for one in tasks if name in (one.metric, one.adapter_metric)}
    endings = tuple(one for one in part.classes if one != "Model") if kind == "tasks" else ()
    wanted = {name, part.__name__, parts.names(kind)[name], *by_tasks, *([part.pipeline] if endings else [])}
    found = [
        one for one in evidence() if wanted & one.names or (endings and any(text.endswith(endings) for text in one.names))
    ]
    best = max(found, key=lambda one: LEVELS.index(one.level), default=None)
    return (best.level, best.file) if best else ("builds", "tests/contracts/test_parts.py")


def page() -> str:
    """The page as Markdown; a test compares it with the file."""
    rows, counts = [], dict.fromkeys(LEVELS, 0)
    for kind in parts.KINDS:
        for name in parts.names(kind):
            level, file = level_of(kind, name)
            counts[level] += 1
            what = (parts.find(kind, name).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ").split("    ")[0]
            what = "" if what.startswith(f"{parts.find(kind, name).__name__}(") else what
            rows.append(f"| {kind} | `{name}` | {what.replace('|', '/')} | {level} | `{file}` |")
    head = [
        "# Components", "", "Made by `python docs/generate.py`; do not edit.", "",
        "How far each component is tested, by the tests and benchmarks that name it, and so where to look: `runs`, put to work;",
        "`parity`, what it makes is compared with something that is known otherwise; `real model`, in a benchmark;",
        "`measured`, in one whose numbers are kept.", "",
        f"{len(rows)} components: {', '.join(f'{count} {level}' for level, count in counts.items() if count)}.", "",
        "| kind | name | | level | shown by |", "|---|---|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
