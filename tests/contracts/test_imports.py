"""The direction of imports, and what starting must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import coldpress

SOURCE = Path(coldpress.__file__).parent

#: folder or module -> what of coldpress it may import at any place in its files
ALLOWED = {
    "texts": {"errors", "networks", "texts"},
    "quant": {"errors", "quant"},
    "networks": {"errors", "model", "networks", "quant"},
    "graphs": {"environment", "errors", "graphs", "model", "networks", "quant", "store", "target"},
    "report": {"errors", "measuring", "parts", "report"},
    "data": {"batches", "data", "errors", "graphs", "model", "parts", "texts", "user_script"},
    "batches": {"batches", "errors", "graphs", "model", "parts", "target", "texts"},
    "measuring": {"errors", "graphs", "measuring", "model", "networks", "target"},
    "user_script": {"errors"},
    "samplers": {"parts", "samplers"},
    "environment": set(),
    "errors": set(),
    "model": {"errors"},
    "schema": {"errors"},
    "target": {"errors"},
    "store": set(),
    "parts": {"errors", "model", "schema", "target"},
    "olive_config": {
        "__version__",
        "azure",
        "errors",
        "olive_config",
        "parts",
        "recipes",
        "schema",
        "target",
        "workflow",
    },
    "tune": {"errors", "model", "networks", "parts", "quant", "tune"},
}
#: parts know the model, their interface, how to open a model and its data, and the folders of knowledge; nothing of the engine
PART = {
    *{"environment", "errors", "model", "parts", "target", "tolerance"},
    *{"batches", "measuring", "user_script"},
    *{"quant", "graphs", "networks", "texts", "tune", "metrics"},
}


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("coldpress"):
            names = [node.module] if node.module != "coldpress" else [f"coldpress.{alias.name}" for alias in node.names]
            found |= {name.split(".")[1] for name in names if "." in name}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("coldpress.")}
    return found


def files_of(name: str) -> list[Path]:
    folder = SOURCE / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{name}.py"]


def test_every_layer_imports_only_what_is_below_it():
    wrong = [
        f"{file.relative_to(SOURCE)} imports {name}"
        for layer, allowed in ALLOWED.items()
        for file in files_of(layer)
        for name in imports_of(file) - allowed
    ]
    assert not wrong


def test_of_the_workflow_only_its_files_know_that_there_is_a_dialect():
    below = [file for file in files_of("workflow") if file.name != "file.py"]
    assert not [file for file in below if "olive_config" in imports_of(file)]
    reading = [file for file in files_of("olive_config") if "workflow.file" in file.read_text(encoding="utf-8")]
    assert not reading, "what is above the dialect"


def test_passes_and_metrics_know_nothing_of_the_engine():
    wrong = [
        f"{file.relative_to(SOURCE)} imports {name}"
        for folder in ("passes", "metrics")
        for file in files_of(folder)
        for name in imports_of(file) - PART
    ]
    assert not wrong


def test_only_the_engine_side_imports_the_command_line():
    wrong = [
        file
        for file in SOURCE.rglob("*.py")
        if "cli" not in file.parts and file.name != "__main__.py" and "cli" in imports_of(file)
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
