"""Hashes of files. That of a large file is made once, and remembered by what the file system says of the file.

BLAKE3 hashes gigabytes a second on all processors, so that reading weights to hash them costs little beside pressing
them. A hash counts as long as device, inode, size and both times of a file are the same. The second one is that of the
last change of anything about the file (ctime, on POSIX): unlike the modification time nobody can set it, so that a
change is noticed even if that was restored.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from coldpress.environment import cache_folder

#: smaller files are hashed in less time than a remembered hash is looked up
_SMALL = 1 << 20
#: a clock of a file system may stand still so long; what is written within one tick after hashing has the same time
_TICK_NS = 50_000_000


def digest(file: Path) -> str:
    """The BLAKE3 hash of a file's content, in hex."""
    before = file.stat()
    if before.st_size < _SMALL:
        return _hash(file)
    known = _recall(before)
    if known is None:
        is_settled = time.time_ns() - before.st_mtime_ns > _TICK_NS
        known = _hash(file)
        if is_settled and _facts(file.stat()) == _facts(before):
            _remember(before, known)
    return known


def link(source: Path, target: Path) -> None:
    """Give a file a second name. That changes its ctime, but nothing of its content: its hash stays known."""
    known = _recall(source.stat())
    os.link(source, target)
    if known is not None:
        _remember(target.stat(), known)


def _hash(file: Path) -> str:
    from blake3 import blake3

    return blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()


def _facts(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _memory(stat: os.stat_result) -> Path:
    """Where the hash of a file is remembered: one small file for each inode."""
    return cache_folder() / "digests" / f"{stat.st_dev:x}-{stat.st_ino:x}.json"


def _recall(stat: os.stat_result) -> str | None:
    try:
        facts, known = json.loads(_memory(stat).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(known) if facts == _facts(stat) else None


def _remember(stat: os.stat_result, known: str) -> None:
    file = _memory(stat)
    with suppress(OSError):  # a cache that cannot be written is none
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump([_facts(stat), known], stream)
        Path(written).replace(file)
