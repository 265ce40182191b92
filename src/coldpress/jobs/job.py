"""One unit of work as plain data: a pass or a metric on a model. Every system ends in ``execute``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.jobs.store import Store
from coldpress.models.model import Model, content_key
from coldpress.parts import schema
from coldpress.target import Target

Progress = Callable[[str, float, float], None]


def silent(what: str, done: float, total: float) -> None:
    """Progress that nobody follows."""


_KINDS = {"pass": "passes", "metric": "metrics"}


@dataclass(frozen=True)
class Job:
    """A pass or metric, its parameters, and what it works on. Equal jobs have equal keys."""

    kind: str  # "pass" or "metric"
    part: str
    parameters: Mapping[str, Any]
    model: Model
    target: Target = Target()
    source: Model | None = None
    seed: int = 0

    @property
    def part_class(self) -> type[Any]:
        return parts.find(_KINDS[self.kind], self.part)

    @cached_property
    def key(self) -> str:
        """The hash of everything that decides the result; paths and threads of a pass do not."""
        facts = {
            "part": [self.kind, self.part, _facts(self.part_class, self.parameters)],
            "parameters": schema.plain(self.parameters),
            "model": self.model.key,
            "source": self.source.key if self.source else None,
            "target": [self.target.device, self.target.provider, self.target.threads if self._counts_threads else 0],
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def _counts_threads(self) -> bool:
        return self.kind == "metric" or bool(self.part_class.is_timed)

    def to_json(self) -> dict[str, Any]:
        return schema.plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        source = data["source"]
        return cls(
            **{
                **data,
                "model": _model(data["model"]),
                "source": _model(source) if source else None,
                "target": Target(**data["target"]),
            }
        )


@dataclass(frozen=True)
class Result:
    """What a job gave: a model (of a pass) or numbers (of a metric). ``ended``: when, in seconds since the epoch."""

    seconds: float
    cached: bool
    model: Model | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    ended: float | None = None

    def to_json(self) -> dict[str, Any]:
        return schema.plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        return cls(**{**data, "model": _model(data["model"]) if data["model"] else None})


def execute(job: Job, store: Store, progress: Progress = silent) -> Result:
    """Do a job, or find its result in the store. A job that fails leaves nothing behind."""
    with store.lock(job.key):
        return lookup(job, store) or _work(job, store, progress)


def lookup(job: Job, store: Store) -> Result | None:
    """The stored result of a job, if there is one."""
    entry = store.get(job.key)
    if entry is None:
        return None
    return _result(job, entry.folder, entry.record, cached=True)


def _work(job: Job, store: Store, progress: Progress) -> Result:
    started = time.perf_counter()
    part = schema.build(job.part_class, dict(job.parameters), job.part)
    with store.scratch() as scratch:
        context = parts.Context(scratch, job.target, job.source, progress, job.seed, _keeper(store))
        if job.kind == "pass":
            made = part.run(job.model, context)
            if made.path == job.model.path:  # nothing was made, and why not may be different the next time
                return Result(time.perf_counter() - started, False, made, ended=time.time())
            value = {"format": made.format, "file": _inside(made.path, scratch), "notes": schema.plain(made.notes)}
        else:
            value = {"numbers": part.measure(job.model, context)}
        value |= {"seconds": time.perf_counter() - started, "ended": time.time()}
        entry = store.put(job.key, scratch, value)
    return _result(job, entry.folder, entry.record, cached=False)


def _keeper(store: Store) -> Callable[[str, Mapping[str, Any]], AbstractContextManager[Path]]:
    def kept(kind: str, facts: Mapping[str, Any]) -> AbstractContextManager[Path]:
        digest = hashlib.sha256(json.dumps(schema.plain(facts), sort_keys=True).encode()).hexdigest()
        return store.kept(f"{kind}-{digest}")

    return kept


def _result(job: Job, folder: Path, value: Mapping[str, Any], *, cached: bool) -> Result:
    when = value["seconds"], cached
    if job.kind == "metric":
        return Result(*when, numbers=value["numbers"], ended=value.get("ended"))
    model = Model(folder / value["file"], value["format"], job.key, value["notes"])
    return Result(*when, model=model, ended=value.get("ended"))


def _facts(part: type[Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the work of a part besides its parameters, and that of the data it takes its batches from."""
    given = [parameters[name] for name in parts.data_fields(part) if parameters.get(name)]
    sources = [schema.build(parts.DataSource, schema.plain(source), "data") for source in given]
    return {
        "version": part.version,
        "files": [content_key(file) for name in part.reads for file in _files(parameters.get(name) or ())],
        "needs": {name: _version(name) for name in part.needs},
        "data": [_facts(parts.find("data", source.type), source.parameters) for source in sources],
    }


def _files(patterns: str | Sequence[str]) -> list[Path]:
    """The files and folders that a parameter names; one that does not exist is the part's to complain of."""
    listed = [patterns] if isinstance(patterns, str) else patterns
    return [file for pattern in listed for file in _matching(Path(pattern).expanduser())]


def _matching(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    return [Path(name) for name in sorted(glob(str(path), recursive=True))]  # noqa: PTH207  any path, any depth


def _inside(path: Path, scratch: Path) -> str:
    return path.relative_to(scratch).as_posix()


def _model(data: Mapping[str, Any]) -> Model:
    return Model(**{**data, "path": Path(data["path"])})


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
