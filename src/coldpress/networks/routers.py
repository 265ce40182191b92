"""Modules that decide where a token goes: tiny, and never rounded. A token at the wrong expert is lost whole."""

from __future__ import annotations

import fnmatch

#: globs over the names of modules
ROUTERS = ("*.gate", "*.gate.wg", "*.router", "*.router.*", "*.shared_expert_gate")


def is_router(module: str) -> bool:
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in ROUTERS)
