"""The direction of imports, and what starting must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import coldpress

SOURCE = Path(coldpress.__file__).parent

#: room -> the rooms below it, which are all that its files may import, inside functions too
BELOW = {
    name: set(below.split())
    for name, below in {
        "errors": "",
        "environment": "",
        "quant": "errors",
        "target": "errors",
        "models": "environment errors quant",
        "parts": "errors models target",
        "tasks": "errors measuring models parts",
        "networks": "errors models quant",
        "calibration": "errors models networks quant",
        "rules": "errors graphs parts target",
        "samplers": "parts",
        "jobs": "environment errors models parts target",
        "graphs": "environment errors jobs models networks parts quant target",
        "serving": "errors graphs models target",
        "data": "errors graphs models parts quant target",
        "tune": "calibration errors models networks parts quant",
        "measuring": "data errors graphs models networks parts serving target",
        "systems": "environment errors graphs jobs parts",
        "report": "measuring parts",
        "workflow": "errors jobs models parts target",
        "passes": "calibration data errors graphs measuring models networks parts quant rules target tune",
        "metrics": "data environment errors graphs measuring models networks parts serving target",
        "packaging": "errors models report serving workflow",
        "search": "errors measuring models parts report target workflow",
        "runs": "environment errors graphs jobs measuring models packaging parts passes report search target workflow",
        "api": "errors jobs models parts runs serving target workflow",
        "cli": "api environment errors jobs models parts passes report runs serving target tune workflow",
        "__main__": "cli",
    }.items()
}
#: of the folder of kinds of data, others use only how texts and batches are made: kinds are known by name
SHARED_DATA = ("coldpress.data.texts", "coldpress.data.batches")


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(SOURCE.rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """The modules of coldpress that a module imports anywhere in its file."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "coldpress":
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "coldpress"}
    return found - {module, "coldpress"}


def room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def test_every_room_imports_only_what_is_below_it():
    wrong = [
        f"{module} imports {name}"
        for module in FILES
        if module != "coldpress"
        for name in imports_of(module)
        if room(name) != room(module) and room(name) not in BELOW[room(module)]
    ]
    assert not wrong


def test_no_rooms_and_no_files_import_each_other():
    assert not circles(BELOW)
    assert not circles({module: imports_of(module) for module in FILES if module != "coldpress"})


def test_every_room_is_in_the_table_and_every_arrow_of_it_is_used():
    used = {name: set[str]() for name in BELOW}
    for module in FILES:
        if module != "coldpress":
            used[room(module)] |= {room(name) for name in imports_of(module)} - {room(module)}
    assert used == BELOW


def test_the_root_is_a_table_of_contents():
    entries = [entry for entry in SOURCE.iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= 30
    assert len([entry for entry in entries if entry.is_file()]) <= 8


def test_of_the_workflow_only_its_files_know_that_there_is_a_dialect():
    below = [name for name in FILES if room(name) == "workflow" and not name.startswith("coldpress.workflow.olive")]
    knowing = {name for name in below if any(i.startswith("coldpress.workflow.olive") for i in imports_of(name))}
    assert knowing <= {"coldpress.workflow.file"}


def test_private_names_of_mobius_are_known_to_one_file():
    private = re.compile(r"\bmobius(\.\w+)*\._|from mobius[\w.]* import _")
    knowing = {name for name, file in FILES.items() if private.search(file.read_text(encoding="utf-8"))}
    assert knowing == {"coldpress.graphs.capture.mobius.attention_fusion"}


def test_kinds_of_data_are_known_by_name():
    wrong = [
        f"{module} imports {name}"
        for module in FILES
        for name in imports_of(module)
        if room(name) == "data" and not name.startswith(SHARED_DATA)
        if room(module) != "data" or module.startswith(SHARED_DATA)
    ]
    assert not wrong


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(chr(10).join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxruntime_genai",
    "mobius",
    "numpy",
    "rich",
    "msgspec",
    "optuna",
    "peft",
}


def test_import_coldpress_loads_nothing_heavy():
    assert not modules_after("import coldpress") & HEAVY


def test_help_and_list_load_nothing_heavy():
    for arguments in (["--help"], ["list"], ["auto-opt", "--help"], ["finetune", "--help"]):
        code = f"""
import contextlib, io
from coldpress.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main({arguments!r})
"""
        assert not modules_after(code) & (HEAVY - {"msgspec"}), arguments


def test_public_names_are_what_they_say():
    from coldpress import _HOMES

    assert set(coldpress.__all__) == {*_HOMES, "__version__"}
    for name in coldpress.__all__:
        assert not (SOURCE / f"{name}.py").exists(), "a module of this name would hide it once it is imported"
        thing = getattr(coldpress, name)
        assert name == "__version__" or thing.__doc__, name
