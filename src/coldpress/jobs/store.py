"""Finished results by key. A result is a folder that is complete or absent.

Work happens in a scratch folder of the store, which becomes the result by one rename. So a cache, resuming after a
kill and moving results about are the same thing. Two runs on one store do not disturb each other: who
comes second to a key waits for its lock and finds the result.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.environment import cache_folder, shared_cache
from coldpress.jobs.remote import Remote
from coldpress.models.digests import digest
from coldpress.models.model import CACHE_TAG

_RECORD = "record.json"
#: what backups and our own look for to pass over a folder (https://bford.info/cachedir/)
_CACHE_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n"
_ABANDONED_AFTER_S = 24 * 3600


@dataclass(frozen=True)
class Entry:
    """A finished result: ``folder`` holds its files, ``record`` what was stored about it."""

    key: str
    folder: Path
    record: dict[str, Any]


class Store:
    """A folder of results.

    ``root`` defaults to `environment.cache_folder`. A copy of the folder is as good as the folder itself.

    ``since``: results that are older, in seconds since the epoch, are not found, and made anew. ``remote``: where
    others have results, too.
    """

    def __init__(self, root: Path | str | None = None, since: float = 0.0, remote: Remote | None = None):
        self.root = Path(root).expanduser().absolute() if root else cache_folder()
        self.since = since
        self.remote = remote

    def get(self, key: str) -> Entry | None:
        """The result of a key; None if there is none, it is too old, or its files do not hold what they did."""
        folder = self._folder(key)
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if record["created"] < self.since or not _is_intact(folder / "files", record["files"]):
            return None
        return Entry(key, folder / "files", record["value"])

    def take(self, key: str) -> Entry | None:
        """The result of a key, from here or, if it is not here, from the remote, of which it is then kept here, too."""
        known = self.get(key)
        if known is not None or self.remote is None:
            return known
        with self.lock(key):
            return self.get(key) or self._taken(key, self.remote)

    def _taken(self, key: str, remote: Remote) -> Entry | None:
        with self.kept(f"remote-{key}") as folder:  # a transfer that was killed goes on
            value = remote.get(key, folder, self.since)
            if value is None:
                shutil.rmtree(folder)
                return None
            return self.put(key, folder, dict(value))

    def share(self, key: str) -> None:
        """Bring the result of a key to the remote, if there is one that may be written to and lacks it."""
        if self.remote is None or self.remote.read_only or self.remote.has(key):
            return
        if (entry := self.get(key)) is not None:
            record = json.loads((self._folder(key) / _RECORD).read_text(encoding="utf-8"))
            self.remote.put(key, entry.folder, entry.record, record["created"])

    def put(self, key: str, scratch: Path, value: dict[str, Any]) -> Entry:
        """Make a scratch folder the result of a key."""
        staged = Path(tempfile.mkdtemp(dir=self._made("scratch")))
        os.replace(scratch, staged / "files")
        record = {"value": value, "files": _contents(staged / "files"), "created": time.time()}
        (staged / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        target = self._folder(key)
        if target.exists():
            shutil.rmtree(target)  # damaged, or it would have been found
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, target)
        return Entry(key, target / "files", value)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder that is gone afterwards, whatever happens, unless it became a result."""
        self._remove_abandoned()
        folder = Path(tempfile.mkdtemp(dir=self._made("scratch")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Only one process at a time works on a key."""
        from filelock import FileLock

        with FileLock(self._made("locks") / f"{key}.lock"):
            yield

    @contextmanager
    def kept(self, key: str) -> Iterator[Path]:
        """A folder that outlives a killed run, for what a part can go on from; nobody else is in it meanwhile."""
        folder = self._made(f"kept/{key}")
        with self.lock(key):
            if folder.stat().st_mtime < self.since:
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True)
            os.utime(folder)
            yield folder

    def entries(self) -> Iterator[tuple[Entry, float, int]]:
        """All intact results with the time they were made and their size in bytes, oldest first."""
        found = []
        for record_file in self.root.glob("results/*/*/record.json"):
            key = record_file.parent.name
            entry = self.get(key)
            if entry is not None:
                created = json.loads(record_file.read_text(encoding="utf-8"))["created"]
                found.append((entry, created, sum(f.stat().st_size for f in entry.folder.rglob("*") if f.is_file())))
        yield from sorted(found, key=lambda item: item[1])

    def collect(self, older_than_days: float) -> tuple[int, int]:
        """Remove results older than that, and whatever killed runs left; returns (results, bytes) removed."""
        limit, count, freed = time.time() - older_than_days * 86400, 0, 0
        for entry, created, size in self.entries():
            if created <= limit:
                shutil.rmtree(entry.folder.parent, ignore_errors=True)
                count, freed = count + 1, freed + size
        for folder in (self.root / "kept").glob("*"):
            if folder.stat().st_mtime <= limit:
                freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
        for file in (self.root / "digests").glob("*"):
            if file.stat().st_mtime <= limit:
                file.unlink(missing_ok=True)
        self._remove_abandoned()
        return count, freed

    def _folder(self, key: str) -> Path:
        return self.root / "results" / key[:2] / key

    def _made(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        if not (self.root / CACHE_TAG).exists():
            (self.root / CACHE_TAG).write_text(_CACHE_SIGNATURE, encoding="utf-8")
        return folder

    def _remove_abandoned(self) -> None:
        """Scratch that a killed run left a day ago; newer scratch may belong to a run that goes on."""
        for folder in (self.root / "scratch").glob("*"):
            try:
                if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:
                continue


def shared(
    root: Path | str | None = None, since: float = 0.0, cache: str | None = None, read_only: bool = False
) -> Store:
    """A store with the remote at the URL ``cache``, or with the one that the environment names; else without."""
    url = cache or shared_cache()
    return Store(root, since, Remote(url, read_only) if url else None)


def _files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def _contents(folder: Path) -> dict[str, str]:
    """The hash of each file."""
    return {name: digest(file) for name, file in _files(folder).items()}


def _is_intact(folder: Path, contents: dict[str, str]) -> bool:
    """Whether a folder holds just these files."""
    files = _files(folder)
    return files.keys() == contents.keys() and all(digest(file) == contents[name] for name, file in files.items())
