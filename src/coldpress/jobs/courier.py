"""Jobs and results between machines that share no files: what a job reads goes there, what it gave comes back.

Everything travels in pieces of bounded size and counts only when its hash is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.jobs.job import Input, Job, Result, lookup
from coldpress.jobs.store import Store
from coldpress.models.digests import digest
from coldpress.models.model import content_key

#: bytes of a file that travel at a time
PIECE = 32 << 20
#: ``read(path, offset, size)``: bytes of a file of the machine that a job comes from
Read = Callable[[str, int, int], bytes]


class Damaged(ColdpressError):
    """Something did not arrive as it was sent."""


@dataclass(frozen=True)
class Piece:
    """Some bytes at the end of what there is of a file so far."""

    name: str
    data: bytes


def brought(job: Job, inputs: Iterable[Input], store: Store, read: Read) -> Job:
    """The same job for this machine: what it reads lies here already under the same paths, or is fetched, once."""
    places = {one.path: one.path if _is_here(one) else _fetched(one, store, read) for one in inputs}
    return job.moved(places.__getitem__)


def _is_here(one: Input) -> bool:
    return one.path.exists() and content_key(one.path) == one.key


def _fetched(one: Input, store: Store, read: Read) -> Path:
    """Where an input lies after it was read from afar; a file that is whole is not read again."""
    root = one.path if one.path not in one.files else one.path.parent
    with store.kept(f"input-{one.key}") as folder:
        base = folder / one.path.name if root == one.path else folder
        for file in one.files:
            target = base / file.relative_to(root)
            if not target.exists():
                _write(target, str(file), read)
        place = folder / one.path.name
        if content_key(place) != one.key:
            for file in one.files:
                (base / file.relative_to(root)).unlink(missing_ok=True)
            raise Damaged(f"{one.path} did not arrive as it was, or was changed meanwhile", exit_code=1)
        return place


def _write(target: Path, file: str, read: Read) -> None:
    """Write what is in a file afar, going on behind what there is; it is there as a whole, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as stream:
        while data := read(file, stream.tell(), PIECE):
            stream.write(data)
            if len(data) < PIECE:
                break
    part.replace(target)


def sent(job: Job, store: Store, result: Result) -> Iterator[Mapping[str, Any] | Piece]:
    """A result for another machine: first what it is, then its files."""
    entry = store.get(job.key)
    if entry is None:  # nothing was made
        yield {"result": result.to_json()}
        return
    files = [file for file in sorted(entry.folder.rglob("*")) if file.is_file()]
    names = {file: file.relative_to(entry.folder).as_posix() for file in files}
    yield {"value": entry.record, "files": {names[file]: digest(file) for file in files}}
    for file in files:
        with file.open("rb") as stream:
            while data := stream.read(PIECE):
                yield Piece(names[file], data)


def received(job: Job, store: Store, pieces: Iterator[Mapping[str, Any] | Piece]) -> Result:
    """The result that another machine sent, in this store."""
    first = next(pieces)
    assert isinstance(first, Mapping)
    if "result" in first:
        made = Result.from_json(first["result"])
        return made if made.model is None else replace(made, model=replace(made.model, path=job.model.path))
    with store.scratch() as scratch:
        for name in first["files"]:  # those without a byte, too
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).touch()
        for piece in pieces:
            assert isinstance(piece, Piece)
            with (scratch / piece.name).open("ab") as stream:
                stream.write(piece.data)
        wrong = [name for name, known in first["files"].items() if digest(scratch / name) != known]
        if wrong:
            raise Damaged(f"{wrong[0]} of '{job.part}' did not arrive as it was", exit_code=1)
        store.put(job.key, scratch, dict(first["value"]))
    result = lookup(job, store)
    assert result is not None
    return replace(result, cached=False)


def inputs_to_json(inputs: Sequence[Input]) -> list[Any]:
    return [[str(one.path), [str(file) for file in one.files], one.key] for one in inputs]


def inputs_from_json(data: Iterable[Any]) -> list[Input]:
    return [Input(Path(path), tuple(Path(file) for file in files), key) for path, files, key in data]
