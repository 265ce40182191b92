"""Freed memory goes back to the system. glibc keeps it, in pieces that fit nothing, so a long run looks larger than it ever was."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

_M_MMAP_THRESHOLD = -3  # malloc.h
#: larger blocks are mapped, and unmapped when they are freed; each costs page faults, so not too small
_MAPPED_BYTES = 8 << 20


def keep_small() -> None:
    """Large blocks of this process never become holes in its heap. Linux with glibc only; elsewhere nothing happens."""
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def give_back() -> None:
    """What is free now goes back to the system; some milliseconds."""
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
