"""transformers' own renderer of chat templates, without the rest of transformers.

Importing transformers reads more than a thousand files of models, which takes half a second and fifty megabytes; a
template is checked before every press. So where transformers is not in the process yet, the one module with the
renderer is loaded, under empty packages of the names that it has, and all of that is taken out of the way of a later
import again.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_LIBRARY, _UTILS = "transformers", "transformers.utils"
_MODULE = f"{_UTILS}.chat_template_utils"


@cache
def renderer() -> Callable[..., Any]:
    """``render_jinja_template`` of the transformers that is installed."""
    if _LIBRARY not in sys.modules:
        with suppress(Exception), _alone():  # another version's module may need the whole library
            return _rendering()
    return _rendering()


def _rendering() -> Callable[..., Any]:
    found: Callable[..., Any] = importlib.import_module(_MODULE).render_jinja_template
    return found


@contextmanager
def _alone() -> Iterator[None]:
    """Inside, modules of transformers are imported without what their packages import."""
    logger = logging.getLogger(_LIBRARY)
    handlers, propagates = list(logger.handlers), logger.propagate
    spec = find_spec(_LIBRARY)
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    for name, place in ((_LIBRARY, root), (_UTILS, root / "utils")):
        package = types.ModuleType(name)
        package.__path__ = [str(place)]
        sys.modules[name] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".", 1)[0] == _LIBRARY]:
            del sys.modules[name]
        logger.handlers[:], logger.propagate = handlers, propagates
