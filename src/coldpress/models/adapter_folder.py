"""A base and its adapters as one model: ``model/`` is a Hugging Face folder, ``adapter/`` holds one PEFT folder or
several by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import ColdpressError
from coldpress.models.model import files_of, link_or_copy

#: what makes a folder an adapter of PEFT
CONFIG = "adapter_config.json"
BASE, ADAPTERS = "model", "adapter"
#: what a run writes beside a model; a folder with a report inside another one would pass for a model of its own
_OF_A_RUN = ("report.json", "report.html", "workflow.yaml", "README.md")


@dataclass(frozen=True)
class AdapterFolder:
    """``base``: a Hugging Face folder. ``adapters``: PEFT folders by name."""

    base: Path
    adapters: dict[str, Path]


def is_one(path: Path) -> bool:
    """Whether a folder is a base with its adapters."""
    return (path / BASE / "config.json").is_file() and bool(_found(path / ADAPTERS))


def base_of(path: Path) -> Path:
    """The Hugging Face folder that a model's weights are in: the base of one with adapters, else the model's own."""
    return path / BASE if is_one(path) else path


def read(path: Path) -> AdapterFolder:
    """The parts of a base with its adapters. Raises ColdpressError for a folder that is none."""
    if not is_one(path):
        raise ColdpressError(
            f"'{path}' is no base with adapters",
            hint=f"it needs {BASE}/ (a Hugging Face folder) and {ADAPTERS}/ (a PEFT folder), as finetune writes them",
        )
    return AdapterFolder(path / BASE, named(_found(path / ADAPTERS)))


def write(path: Path, base: Path, adapters: Mapping[str, Path]) -> AdapterFolder:
    """Put a base and PEFT folders together in ``path``, large files linked; one adapter alone gives up its name."""
    _take_over(base, path / BASE)
    for name, folder in adapters.items():
        _take_over(folder, path / ADAPTERS / name if len(adapters) > 1 else path / ADAPTERS)
    return read(path)


def name_of(folder: Path) -> str:
    """The name of an adapter by its folder, or by the one around that where it is called ``adapter``."""
    whole = folder.absolute()
    return whole.parent.name if whole.name == ADAPTERS else whole.name


def named(folders: Iterable[Path]) -> dict[str, Path]:
    """PEFT folders by name, as `name_of` has it.

    Raises ColdpressError when two have one name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        name = name_of(folder)
        if name in found:
            raise ColdpressError(
                f"two adapters have the name '{name}': {found[name]} and {folder}", hint="rename the folder of one"
            )
        found[name] = folder
    return found


def _found(folder: Path) -> list[Path]:
    if (folder / CONFIG).is_file():
        return [folder]
    return sorted(config.parent for config in folder.glob(f"*/{CONFIG}"))


def _take_over(source: Path, target: Path) -> None:
    for file in files_of(source):
        if file.name not in _OF_A_RUN:
            link_or_copy(file, target / file.relative_to(source))
