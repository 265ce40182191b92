"""Keeping torch out of a process that only builds graphs.

mobius imports torch in every model file, but for most architectures never uses it; transformers reads
configurations faster when torch is absent. Importing torch would cost half of the time and most of the memory of
building a graph. So the worker process (and only it) shows torch to nobody at first, then as a module that
turns into the real one when an attribute is touched.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _Deferred(types.ModuleType):
    """A module that is imported when one of its attributes is first needed."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        load()
        return getattr(sys.modules[self.__name__], attribute)


_DEFERRED = ("torch", "safetensors.torch")


def hide() -> None:
    """From here on, ``import torch`` fails. Without effect where torch has been imported already."""
    if not _is_there():
        sys.modules["torch"] = None  # type: ignore[assignment]


def defer() -> None:
    """From here on, ``import torch`` succeeds at once and the real import happens at the first use."""
    if not _is_there():
        for name in _DEFERRED:
            sys.modules[name] = _Deferred(name)


def _is_there() -> bool:
    return sys.modules.get("torch") is not None and not isinstance(sys.modules["torch"], _Deferred)


def load() -> None:
    """Import the real modules now."""
    for name in _DEFERRED:
        if isinstance(sys.modules.get(name), _Deferred):
            del sys.modules[name]
    for name in _DEFERRED:
        importlib.import_module(name)
