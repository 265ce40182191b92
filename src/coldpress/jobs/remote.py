"""Finished results in a place that many machines share, behind the store of each: a folder, S3, Azure Blob, GCS.

Files lie there in pieces that are named by their hashes, so that equal ones are stored once, a transfer goes on where
it stopped, and writers do not disturb each other. A result is there when its record is, which is written last.
Whatever does not hold what its hash says is removed, and made anew.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from coldpress.environment import without_secrets
from coldpress.errors import WORK_FAILED, ColdpressError, raised_as
from coldpress.parts.needs import installing

T = TypeVar("T")

#: bytes of a piece, and how many of them travel at a time
PIECE = 16 << 20
_AT_ONCE = 8
#: pauses before an operation is tried again, in seconds
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
#: a piece that no record names may belong to a result that is being written
_GRACE_S = 24 * 3600
#: protocol -> the distribution that speaks it
_DRIVERS = {"s3": "s3fs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "gs": "gcsfs", "gcs": "gcsfs", "file": ""}
_NOT_ALLOWED = re.compile(r"permission|authent|authoriz|forbidden|credential|\b40[13]\b", re.IGNORECASE)


class _Failed(ColdpressError):
    """What a driver raised; ``__cause__`` is that."""


class _Poisoned(Exception):
    """A record or piece that is not what it should be; ``place`` is where."""

    def __init__(self, place: str):
        super().__init__(place)
        self.place = place


@dataclass(frozen=True)
class Remote:
    """``url``: a folder as fsspec names it, such as ``s3://BUCKET/FOLDER``. Credentials come from the environment.

    ``read_only``: results are taken from there, and none are brought.
    """

    url: str
    read_only: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in _DRIVERS:
            raise ColdpressError(
                f"a shared cache is a URL that begins with {', '.join(f'{name}://' for name in _DRIVERS)}",
                hint="such as s3://BUCKET/FOLDER; a folder of this machine is cache_dir",
            )
        if parts.password or parts.query:
            raise ColdpressError(
                "the URL of a shared cache holds a secret, which would be seen in logs and reports",
                hint="give credentials in the environment, as AWS_SECRET_ACCESS_KEY or AZURE_STORAGE_CONNECTION_STRING",
            )

    def check(self) -> None:
        """Raise ColdpressError where nobody answers, or not to us; where there is nothing to read, or no writing."""
        is_there = self._tried("look into", lambda: self._files.exists(self._place("results")))
        if not self.read_only:
            probe = self._place(f"probe-{uuid.uuid4().hex}")
            self._write({probe: b"whether this can be written to"})
            self._remove([probe])
        elif not is_there:
            raise ColdpressError(f"there is no shared cache at {self.url}", hint="is it spelled so?")

    def has(self, key: str) -> bool:
        """Whether the result of a key was brought."""
        found: bool = self._tried("look into", lambda: self._files.exists(self._record_place(key)))
        return found

    def get(self, key: str, into: Path, since: float = 0.0) -> Mapping[str, Any] | None:
        """The value of a result whose files are then below ``into``, which may hold some of them already.

        None if there is none, or only one that is older than ``since``. What does not hold what it should is removed.
        """
        try:
            record = self._record(key)
            if record is None or record["created"] < since:
                return None
            for name, pieces in record["files"].items():
                self._fetch(into / _inside(name), pieces)
        except _Poisoned as poison:
            if not self.read_only:
                for place in (poison.place, self._record_place(key)):
                    self._remove([place])
            return None
        value: Mapping[str, Any] = record["value"]
        return value

    def put(self, key: str, folder: Path, value: Mapping[str, Any], created: float) -> None:
        """Bring a result; what is there of it already is not sent again."""
        if self.read_only:
            return
        files = {}
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            files[file.relative_to(folder).as_posix()] = self._send(file)
        body = {"value": dict(value), "files": files, "created": created}
        record = json.dumps({"body": body, "hash": _hash(json.dumps(body, sort_keys=True).encode())})
        self._write({self._record_place(key): record.encode()})

    def entries(self) -> list[tuple[str, float]]:
        """All keys, and when their results were brought, oldest first."""
        found = self._listed("results")
        return sorted(((PurePosixPath(name).stem, made) for name, (made, _) in found.items()), key=lambda one: one[1])

    def collect(self, older_than_days: float, max_bytes: int | None = None) -> tuple[int, int]:
        """Remove results older than that, the oldest ones of all that are more than ``max_bytes``, and pieces that
        belong to none; returns (results, bytes) removed."""
        if self.read_only:
            raise ColdpressError("the shared cache is read-only", hint="leave that out to clean it")
        records = {key: self._record_or_none(key) for key, _ in self.entries()}
        kept = {key: record for key, record in records.items() if record and not _is_old(record, older_than_days)}
        while max_bytes is not None and kept and sum(_pieces_of(kept.values()).values()) > max_bytes:
            kept.pop(min(kept, key=lambda key: float(kept[key]["created"])))
        gone = records.keys() - kept.keys()
        self._remove([self._record_place(key) for key in sorted(gone)])
        reachable, limit = _pieces_of(kept.values()), time.time() - _GRACE_S
        once = _pieces_of(record for key in gone if (record := records[key]))
        unused = {
            name: size
            for name, (made, size) in self._listed("pieces").items()
            if (piece := PurePosixPath(name).name) not in reachable and (made < limit or piece in once)
        }
        self._remove(sorted(unused))
        return len(gone), sum(unused.values())

    # Files and pieces

    def _send(self, file: Path) -> list[list[Any]]:
        """The pieces of a file, by hash and size, all of which are there then."""
        pieces: list[list[Any]] = []
        with file.open("rb") as stream:
            while batch := [data for data in (stream.read(PIECE) for _ in range(_AT_ONCE)) if data]:
                named = {_hash(data): data for data in batch}
                pieces += [[_hash(data), len(data)] for data in batch]
                missing = {name: data for name, data in named.items() if not self._has(name, len(data))}
                self._write({self._piece_place(name): data for name, data in missing.items()})
        return pieces

    def _has(self, piece: str, size: int) -> bool:
        def look() -> bool:
            try:
                return bool(self._files.info(self._piece_place(piece))["size"] == size)
            except FileNotFoundError:
                return False

        return self._tried("look into", look)

    def _fetch(self, target: Path, pieces: Sequence[Sequence[Any]]) -> None:
        """Write a file, going on behind the pieces that are there."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        done = _same_pieces(target, pieces)
        with target.open("r+b") as stream:
            stream.truncate(sum(size for _, size in pieces[:done]))
            stream.seek(0, 2)
            left = iter(pieces[done:])
            while batch := [name for name, _ in islice(left, _AT_ONCE)]:
                places = [self._piece_place(name) for name in dict.fromkeys(batch)]
                found = self._read(places)
                for name in batch:
                    data = found.get(self._piece_place(name))
                    if data is None or _hash(data) != name:
                        raise _Poisoned(self._piece_place(name))
                    stream.write(data)

    def _record(self, key: str) -> dict[str, Any] | None:
        place = self._record_place(key)
        data = self._read([place]).get(place)
        if data is None:
            return None
        try:
            told = json.loads(data)
            body: dict[str, Any] = told["body"]
            is_whole = told["hash"] == _hash(json.dumps(body, sort_keys=True).encode())
            names = list(body["files"])
        except (ValueError, KeyError, TypeError):
            raise _Poisoned(place) from None
        if not is_whole or not all(map(_is_inside, names)):
            raise _Poisoned(place)
        return body

    def _record_or_none(self, key: str) -> dict[str, Any] | None:
        try:
            return self._record(key)
        except _Poisoned:
            return None

    # The file system

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        scheme = urlsplit(self.url).scheme
        try:
            from fsspec.core import url_to_fs

            with raised_as(lambda error: _failure("open", self.url, error)):
                files, root = url_to_fs(self.url)
        except _Failed as failure:
            if isinstance(failure.__cause__, ImportError):
                driver = _DRIVERS[scheme]
                raise ColdpressError(
                    f"{scheme}:// needs {driver}, which is not installed", hint=installing(driver)
                ) from None
            raise
        return files, str(root).rstrip("/")

    @property
    def _files(self) -> Any:
        return self._opened[0]

    def _place(self, *names: str) -> str:
        return "/".join([self._opened[1], *names])

    def _piece_place(self, name: str) -> str:
        return self._place("pieces", name[:2], name)

    def _record_place(self, key: str) -> str:
        return self._place("results", key[:2], f"{key}.json")

    def _read(self, places: Sequence[str]) -> dict[str, bytes]:
        """What is in those files that are there."""

        def read() -> dict[str, bytes]:
            found = self._files.cat(list(places), on_error="return")
            for error in found.values():
                if isinstance(error, Exception) and not isinstance(error, FileNotFoundError):
                    raise error
            return {place: data for place, data in found.items() if isinstance(data, bytes)}

        return self._tried("read from", read)

    def _write(self, contents: Mapping[str, bytes]) -> None:
        """Write files, each whole or not at all."""
        try:
            if self._files.protocol in ("file", ("file", "local")):
                for place, data in contents.items():
                    self._tried("write to", partial(_replace, Path(place), data))
            elif contents:
                self._tried("write to", lambda: self._files.pipe(dict(contents)))
        except FileNotFoundError as error:  # of a bucket that there is not
            raise _failure("write to", self.url, error) from error

    def _remove(self, places: Sequence[str]) -> None:
        for place in places:
            try:
                self._tried("remove from", partial(self._files.rm_file, place))
            except FileNotFoundError:  # another one was faster
                continue

    def _listed(self, folder: str) -> dict[str, tuple[float, int]]:
        """All files below: when they were written, in seconds since the epoch, and their sizes in bytes."""

        def look() -> dict[str, Any]:
            self._files.invalidate_cache()
            found: dict[str, Any] = self._files.find(self._place(folder), detail=True)
            return found

        found = self._tried("list", look)
        return {name: (_written(info), int(info["size"])) for name, info in found.items()}

    def _tried(self, what: str, work: Callable[[], T]) -> T:
        """Do something over there, again where it fails for reasons that pass; a missing file is the caller's."""
        for pause in (*_PAUSES_S, None):
            try:
                with raised_as(lambda error: _failure(what, self.url, error)):
                    return work()
            except _Failed as failure:
                if isinstance(failure.__cause__, FileNotFoundError):
                    raise failure.__cause__ from None
                if pause is None or _is_refusal(failure.__cause__):
                    raise
                time.sleep(pause)
        raise AssertionError  # the last try returns or raises


def _failure(what: str, url: str, error: BaseException) -> _Failed:
    words = without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
    hint = (
        "are its credentials in the environment, and not expired?"
        if _is_refusal(error)
        else "is it there, and reached?"
    )
    made = _Failed(f"cannot {what} the shared cache {url}: {words}", hint=hint, exit_code=WORK_FAILED)
    return made


def _is_refusal(error: BaseException | None) -> bool:
    return _NOT_ALLOWED.search(f"{type(error).__name__} {error}") is not None


def _hash(data: bytes) -> str:
    from blake3 import blake3

    return blake3(data, max_threads=blake3.AUTO).hexdigest()


def _same_pieces(file: Path, pieces: Sequence[Sequence[Any]]) -> int:
    """How many pieces at the beginning of a file are what they should be."""
    with file.open("rb") as stream:
        for number, (name, size) in enumerate(pieces):
            if _hash(stream.read(size)) != name:
                return number
    return len(pieces)


def _replace(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".part", delete=False) as stream:
        stream.write(data)
    Path(stream.name).replace(place)


def _is_inside(name: str) -> bool:
    """Whether a name leads nowhere but below the folder that it is in."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not re.search(r"[\\:]", name)


def _inside(name: str) -> Path:
    return Path(*PurePosixPath(name).parts)


def _is_old(record: Mapping[str, Any], days: float) -> bool:
    return float(record["created"]) <= time.time() - days * 86400


def _pieces_of(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The pieces that records name, each once, and their sizes."""
    return {name: size for record in records for pieces in record["files"].values() for name, size in pieces}


def _written(info: Mapping[str, Any]) -> float:
    """When a file was written, as the drivers tell it in three ways."""
    told = next((info[name] for name in ("mtime", "LastModified", "last_modified", "updated") if name in info), 0.0)
    return float(told.timestamp() if hasattr(told, "timestamp") else told)
