"""Scripts that were written for Olive, run as they are.

Such a script imports Olive to register its functions. Where Olive is not installed, stand-ins take the place of what
scripts import of it for that; whatever else they import is missing, and said to be.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts.needs import installed_version
from coldpress.parts.user_script import UserFunction, names_in

#: kind of a component and its name, in lower case -> what a script registered
_registered: dict[tuple[str, str], Any] = {}


def olive_function(script: str | None, name: str | None, kind: str = "", folder: str | None = None) -> UserFunction:
    """A function of a script, by its own name or by that it was registered under as a ``kind`` of component.

    Only to be called in the process of a job: it runs the script. ``folder``: where that imports from, too.
    """
    if not script or not name:
        raise ColdpressError("a script of Olive's needs 'script', a Python file, and the names of its functions")
    if folder is not None and folder not in sys.path:
        sys.path.append(str(Path(folder).resolve()))
    if installed_version("olive-ai") is None:  # not by the name: a folder of the user's may be called so
        _stand_in()
    known = names_in(script)
    found = _registered.get((kind, name.lower()))
    names = (key for key, value in known.items() if key.lower() == name.lower() or (found and value is found))
    own = next(names, None)
    if own is None:
        registered = [key for of, key in _registered if of == kind]
        hint = did_you_mean(name, [*registered, *(key for key, value in known.items() if callable(value))])
        raise ColdpressError(f"{script} has no function '{name}'", hint=hint)
    return UserFunction(script, own)


class OliveModelOutput(NamedTuple):
    """What a function that reads predictions may give: these, and the scores they were read off."""

    preds: Any
    logits: Any = None


class _Registry:
    """Keeps what a script registers, and gives it back unchanged."""

    @classmethod
    def register(cls, sub_type: Any, name: str | None = None) -> Callable[[Any], Any]:
        kind = str(getattr(sub_type, "value", sub_type))

        def keep(one: Any) -> Any:
            _registered[kind, (name or one.__name__).lower()] = one
            return one

        return keep


def _registering(kind: str) -> Callable[..., Any]:
    return lambda name=None: _Registry.register(kind, name)


class _BaseDataset:
    """Rows and their labels, as Olive's data sets have them."""

    def __init__(self, data: Any, label_col: str | None = "label", max_samples: int | None = None, **_: Any):
        self.data, self.label_col, self.max_samples = data, label_col, max_samples

    def __len__(self) -> int:
        return min(len(self.data), self.max_samples or len(self.data))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.data[index]
        if not isinstance(row, dict):
            return row[0], row[1]
        return {key: value for key, value in row.items() if key != self.label_col}, row.get(self.label_col)


class _Handler:
    """What annotations of scripts name."""


class _Framework(str, enum.Enum):
    ONNX, PYTORCH = "ONNX", "PyTorch"


#: kind of component as a script names it when it registers one -> its name here
KINDS = {
    "dataset": "load_dataset",
    "pre_process": "pre_process_data",
    "post_process": "post_process_data",
    "dataloader": "dataloader",
}


def _stand_in() -> None:
    """Put the stand-ins where scripts import them from."""
    for short, kind in KINDS.items():
        for name in (f"register_{short}", f"register_default_{short}"):
            setattr(_Registry, name, staticmethod(_registering(kind)))
    homes: dict[str, dict[str, Any]] = {
        "olive.data.registry": {"Registry": _Registry},
        "olive.data.component.dataset": {"BaseDataset": _BaseDataset},
        "olive.constants": {"Framework": _Framework},
        "olive.evaluator.olive_evaluator": {"OliveModelOutput": OliveModelOutput},
        "olive.model": dict.fromkeys(("OliveModelHandler", "ONNXModelHandler", "PyTorchModelHandler"), _Handler),
        "olive.hardware": {},
    }
    for home, names in homes.items():
        parts = home.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name not in sys.modules:
                module = ModuleType(name, "A stand-in: coldpress runs scripts of Olive's without it.")
                module.__path__ = []
                sys.modules[name] = module
                if end > 1:
                    setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
        vars(sys.modules[home]).update(names)
