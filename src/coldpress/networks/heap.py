"""Freed memory goes back to the system. glibc keeps it, in pieces that fit nothing, so a long run looks larger than it
ever was."""

from __future__ import annotations

import ctypes
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
#: larger blocks are mapped, and unmapped when they are freed; each costs page faults, so not too small
_MAPPED_BYTES = 8 << 20
#: what is free at the end of the heap stays there up to so much: to get pages anew takes as long as to work on them
_KEPT_BYTES = 24 << 20
#: what a process may grow by while it works on one layer after the other
LAYERS_BYTES = 32 << 20
#: what the process had when it gave back the last time
_left = 0


def keep_small() -> None:
    """Large blocks of this process never become holes in its heap. Linux with glibc only; elsewhere nothing happens."""
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back(beyond: int = 0) -> None:
    """What is free now goes back to the system, if the process has grown by more than so many bytes since the last
    time.

    That takes some milliseconds, and to get pages anew far longer: a fifth of the time of a layer of 3.5 million
    weights.
    """
    global _left  # noqa: PLW0603
    if (libc := _glibc()) and (not beyond or _anonymous() > _left + beyond):
        libc.malloc_trim(0)
        _left = _anonymous()


def _anonymous() -> int:
    """Bytes of the process that are no file's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"RssAnon:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


@cache
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
