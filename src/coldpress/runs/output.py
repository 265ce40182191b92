"""The output folder: the model, and beside it what one wants to know about it. Written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.model import Model, files_of, link_or_copy
from coldpress.packaging import write_package
from coldpress.workflow import Package

_REPORT = "report.json"


def check_output(output: Path, overwrite: bool, cache: Path | None = None) -> None:
    """Refuse an output that is a file, or a folder with files in it unless these may be overwritten.

    The ``cache`` may lie inside: a run that was killed leaves nothing else there.
    """
    if output.is_file():
        raise ColdpressError(f"output '{output}' is a file", hint="name a folder with --output_path")
    places = () if cache is None else (cache, *cache.parents)
    if output.is_dir() and not overwrite and any(one.absolute() not in places for one in output.iterdir()):
        raise ColdpressError(f"output folder '{output}' is not empty", hint="choose another, or add --overwrite")
    _check_can_be_written(output)


def _check_can_be_written(output: Path) -> None:
    """Try it in the deepest folder above the output that is there: rights alone do not tell of every file system."""
    there = next(folder for folder in output.absolute().parents if folder.exists())
    hint = "name another folder with --output_path"
    if not there.is_dir():
        raise ColdpressError(f"output '{output}': {there} is a file", hint=hint)
    try:
        Path(tempfile.mkdtemp(prefix=".coldpress-", dir=there)).rmdir()
    except OSError as error:
        raise ColdpressError(f"output '{output}' cannot be written: {error.strerror}: {there}", hint=hint) from error


def is_written(output: Path) -> bool:
    """Whether a run has written the folder, so that it may be up to date."""
    return (output / _REPORT).is_file()


def is_current(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an output folder that holds exactly what this request would write; else None."""
    try:
        report: dict[str, Any] = json.loads((output / _REPORT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    intact = all(_is_intact(output / name, facts) for name, facts in report.get("files", {"": None}).items())
    return report if intact and report.get("identity") == json.loads(json.dumps(identity)) else None


@dataclass(frozen=True)
class Candidate:
    """A model of a run with what describes it, which gets a folder."""

    model: Model
    report: dict[str, Any]
    workflow_yaml: str

    @property
    def place(self) -> str:
        """A model with adapters lies in a folder of its own, where apps look for it and for them."""
        return "model" if self.model.provenance.adapters else ""


@dataclass(frozen=True)
class Beside:
    """What an output folder holds beside the model.

    ``candidates``: folders inside it for other models of the run. ``texts``: names of further files and their text.
    Without ``artifacts`` no model is described.
    """

    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    packaging: Sequence[Package] = ()
    artifacts: bool = True


def publish(best: Candidate, output: Path, beside: Beside = Beside()) -> None:
    """Write a model to ``output``, with what describes it and what belongs beside it; files of others there stay."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        for name, one in beside.candidates.items():
            _write(staged / name, one, beside.artifacts)
        for name, text in beside.texts.items():
            (staged / name).write_text(text, encoding="utf-8")
        _write(staged, best, beside.artifacts, beside.packaging)
        _move_into(staged, output)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(folder: Path, one: Candidate, artifacts: bool, packaging: Sequence[Package] = ()) -> None:
    """The files of a model and what describes it; its report knows all files that are then in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files_of(one.model.path):
        link_or_copy(file, folder / one.place / file.relative_to(one.model.path))
    if artifacts:
        _describe(folder, one)
    for package in packaging:
        write_package(package, folder, one.report)
    if artifacts:
        report = {**one.report, "files": {f.relative_to(folder).as_posix(): _facts(f) for f in _all_files(folder)}}
        (folder / _REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


def _describe(folder: Path, one: Candidate) -> None:
    from coldpress.report.card import card
    from coldpress.report.page import page

    (folder / "workflow.yaml").write_text(one.workflow_yaml, encoding="utf-8")
    (folder / "README.md").write_text(card(one.report), encoding="utf-8")
    (folder / "report.html").write_text(page(one.report), encoding="utf-8")


def _all_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _move_into(staged: Path, output: Path) -> None:
    if not output.exists() or not any(output.iterdir()):
        if output.exists():
            output.rmdir()
        staged.chmod(0o755)
        os.replace(staged, output)
        return
    before = json.loads((output / _REPORT).read_text(encoding="utf-8"))["files"] if (output / _REPORT).exists() else {}
    for file in _all_files(staged):
        target = output / file.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
        before.pop(file.relative_to(staged).as_posix(), None)
    for name, facts in before.items():
        if _is_intact(output / name, facts):
            (output / name).unlink()  # written by an earlier run, not part of this one
            with suppress(OSError):  # its folder is in use still
                (output / name).parent.rmdir()


def _facts(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _is_intact(file: Path, facts: list[int] | None) -> bool:
    return facts is not None and ".." not in file.parts and file.is_file() and _facts(file) == facts
