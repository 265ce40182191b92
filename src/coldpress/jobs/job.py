"""One unit of work as plain data: a pass or a metric on a model. Every system ends in ``execute``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.jobs.store import Store
from coldpress.models.adapter_folder import name_of
from coldpress.models.model import Model, content_key, parts_of
from coldpress.models.provenance import Provenance
from coldpress.parts import schema
from coldpress.parts.graph_pass import Share, rewrite_in_a_row
from coldpress.parts.needs import installed_version
from coldpress.target import Target

Progress = Callable[[str, float, float], None]


def silent(what: str, done: float, total: float) -> None:
    """Progress that nobody follows."""


_Version = Callable[[str], str | None]
_KINDS = {"pass": "passes", "metric": "metrics"}


@dataclass(frozen=True)
class Input:
    """What a job reads from ``path``: ``files`` are there, or below it; ``key`` is that of their content."""

    path: Path
    files: tuple[Path, ...]
    key: str


@dataclass(frozen=True)
class Before:
    """A pass that rewrites graphs in front of a job's own pass, with its parameters."""

    part: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """A pass or metric, its parameters, and what it works on. Equal jobs have equal keys.

    ``machine``: what is known of the machine that it runs on; a part of the key where times are taken, and
    of passes that fit their result to it. ``installed``: the versions, where that is not this process's environment, of
    what its parts need. ``before``: of a job that is a `GraphPass`, others that share its load and save; the job's own
    one is the last.
    """

    kind: str  # "pass" or "metric"
    part: str
    parameters: Mapping[str, Any]
    model: Model
    target: Target = Target()
    source: Model | None = None
    seed: int = 0
    machine: Mapping[str, str | int] = field(default_factory=dict)
    before: tuple[Before, ...] = ()
    installed: Mapping[str, str | None] | None = None

    @property
    def part_class(self) -> type[Any]:
        return parts.find(_KINDS[self.kind], self.part)

    @cached_property
    def key(self) -> str:
        """The hash of everything that decides the result.

        Paths do not, but what lies there; nor do threads of a pass.
        """
        version = installed_version if self.installed is None else self.installed.get
        before = [_of_part("pass", one.part, one.parameters, version) for one in self.before]
        facts = {
            **_of_part(self.kind, self.part, self.parameters, version),
            "model": self.model.key,
            "source": self.source.key if self.source else None,
            "target": [self.target.device, self.target.provider, self.target.threads if self._counts_threads else 0],
            "machine": dict(self.machine) if self.counts_machine else {},
            "seed": self.seed,
            **({"before": before} if before else {}),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def needs(self) -> tuple[str, ...]:
        """The distributions without which the job cannot be done."""
        return tuple(dict.fromkeys(name for part, given in self._parts for name in _needed(part, given)))

    @property
    def runs_script(self) -> bool:
        """Whether code of the user's makes the data that it takes."""
        return any(kind.runs_script for part, given in self._parts for _, kind, _ in _data(part, given))

    @property
    def is_timed(self) -> bool:
        """Whether times are taken: nothing else shall run beside it."""
        return any(part.is_timed for part, _ in self._parts)

    @property
    def _counts_threads(self) -> bool:
        return self.kind == "metric" or self.is_timed

    @property
    def counts_machine(self) -> bool:
        """Whether the result belongs to the machine that it is made on: a time, or weights that fit its processor."""
        fits = any(issubclass(part, parts.Pass) and part.fits_machine for part, _ in self._parts)
        return self.is_timed or fits

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """All that the job reads: models, and the files that its parameters name.

        Another machine needs no more of this one.
        """
        found = [self.model.path, *([self.source.path] if self.source else [])]

        def note(paths: list[Path], given: str) -> str:
            found.extend(paths)
            return given

        for part, parameters in self._parts:
            _with_files(part, parameters, note)
        return tuple(Input(path, tuple(parts_of(path)), content_key(path)) for path in dict.fromkeys(found))

    def moved(self, place: Callable[[Path], Path]) -> Job:
        """The same job, with the same key, for where each path of its inputs is ``place(path)``."""

        def put(paths: list[Path], given: str) -> str | list[str]:
            return [str(place(path)) for path in paths] if paths else given

        model = replace(self.model, path=place(self.model.path))
        source = None if self.source is None else replace(self.source, path=place(self.source.path))
        *earlier, own = [_with_files(part, parameters, put) for part, parameters in self._parts]
        before = tuple(replace(one, parameters=new) for one, new in zip(self.before, earlier, strict=True))
        return replace(self, model=model, source=source, parameters=own, before=before)

    @property
    def _parts(self) -> list[tuple[type[Any], Mapping[str, Any]]]:
        """The parts that do the job, in their order, with their parameters."""
        earlier = [(parts.find("passes", one.part), one.parameters) for one in self.before]
        return [*earlier, (self.part_class, self.parameters)]

    def made(self) -> list[Any]:
        """The passes of the job in their order, or its metric."""
        names = [*(one.part for one in self.before), self.part]
        return [schema.build(part, dict(given), name) for name, (part, given) in zip(names, self._parts, strict=True)]

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
                "before": tuple(Before(**one) for one in data["before"]),
            }
        )


@dataclass(frozen=True)
class Result:
    """What a job gave: a model (of a pass) or numbers (of a metric). ``ended``: when, in seconds since the epoch.

    ``shares``: of passes that share a load and a save, what each of them took and said.
    """

    seconds: float
    cached: bool
    model: Model | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    ended: float | None = None
    shares: tuple[Share, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return schema.plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        model = _model(data["model"]) if data["model"] else None
        return cls(**{**data, "model": model, "shares": _shares(data["shares"])})


def execute(job: Job, store: Store, progress: Progress = silent) -> Result:
    """Do a job, or find its result in the store. A job that fails leaves nothing behind."""
    with store.lock(job.key):
        return lookup(job, store) or _work(job, store, progress)


def lookup(job: Job, store: Store, *, afar: bool = False) -> Result | None:
    """The stored result of a job, if there is one that this version can read; ``afar``: also that of others."""
    entry = store.take(job.key) if afar else store.get(job.key)
    try:
        return None if entry is None else _result(job, entry.folder, entry.record, cached=True)
    except schema.Misfit:  # of a version that knew of other facts
        return None


def _work(job: Job, store: Store, progress: Progress) -> Result:
    started = time.perf_counter()
    done = job.made()
    shares: tuple[Share, ...] = ()
    with store.scratch() as scratch:
        context = parts.Context(scratch, job.target, job.source, progress, job.seed, _keeper(store))
        if job.kind == "pass":
            if job.before:
                made, shares = rewrite_in_a_row(done, job.model, context)
            else:
                made = done[0].run(job.model, context)
            if made.path == job.model.path:  # nothing was made, and why not may be different the next time
                return Result(time.perf_counter() - started, False, made, ended=time.time())
            value = {
                "format": made.format,
                "file": _inside(made.path, scratch),
                "provenance": schema.plain(made.provenance),
                "shares": schema.plain(shares),
            }
        else:
            value = {"numbers": done[0].measure(job.model, context)}
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
    provenance = schema.build(Provenance, value.get("provenance"), "provenance")
    model = Model(folder / value["file"], value["format"], job.key, provenance)
    return Result(*when, model=model, ended=value.get("ended"), shares=_shares(value.get("shares", ())))


def _shares(data: Sequence[Any]) -> tuple[Share, ...]:
    return tuple(schema.build(Share, one, "shares") for one in data)


def _of_part(kind: str, name: str, parameters: Mapping[str, Any], version: _Version) -> dict[str, Any]:
    """What decides a result of a part and its parameters."""
    part = parts.find(_KINDS[kind], name)
    return {
        "part": [kind, name, _versions(part, parameters, version)],
        "parameters": _with_files(part, parameters, _named_contents),
    }


def _versions(part: type[Any], parameters: Mapping[str, Any], version: _Version) -> dict[str, Any]:
    """The versions of a part, of what it needs, and of the data it takes its batches from."""
    return {
        "version": part.version,
        "needs": {name: version(name) for name in part.needs},
        "data": [_versions(kind, source.parameters, version) for _, kind, source in _data(part, parameters)],
    }


def _needed(part: type[Any], parameters: Mapping[str, Any]) -> Iterator[str]:
    """The distributions that a part and the data it takes its batches from need."""
    yield from part.needs
    for _, kind, source in _data(part, parameters):
        yield from _needed(kind, source.parameters)


def _data(part: type[Any], parameters: Mapping[str, Any]) -> Iterator[tuple[str, type[Any], parts.DataSource]]:
    """The parameters of a part that name data, with the kind of that."""
    for name in parts.data_fields(part):
        if parameters.get(name):
            source = schema.build(parts.DataSource, schema.plain(parameters[name]), "data")
            yield name, parts.find("data", source.type), source


def _with_files(
    part: type[Any], parameters: Mapping[str, Any], change: Callable[[list[Path], str], Any]
) -> dict[str, Any]:
    """Parameters as plain data with another value for each text that names files, those of data included.

    ``change`` is given the files and folders that are there, perhaps none, and the text, which is a path or a pattern.
    """
    changed: dict[str, Any] = schema.plain(parameters)
    for name in part.reads:
        if isinstance(given := changed.get(name), str) and given:
            changed[name] = _single(change(_matching(given), given))
        elif isinstance(given, list):
            changed[name] = [one for text in given for one in _listed(change(_matching(text), text))]
    for name, kind, source in _data(part, parameters):
        changed[name]["parameters"] = _with_files(kind, source.parameters, change)
    return changed


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _named_contents(paths: list[Path], given: str) -> Any:
    """What counts of a text that names files: their names, which reports and names of adapters are made of, and
    contents."""
    return [{name_of(path): content_key(path)} for path in paths] if paths else given


def _matching(pattern: str) -> list[Path]:
    """The files and folders that a parameter names; one that does not exist is the part's to complain of."""
    path = Path(pattern).expanduser()
    if path.exists():
        return [path]
    return [Path(name) for name in sorted(glob(str(path), recursive=True))]  # noqa: PTH207  any path, any depth


def _inside(path: Path, scratch: Path) -> str:
    return path.relative_to(scratch).as_posix()


def _model(data: Mapping[str, Any]) -> Model:
    provenance = schema.build(Provenance, data["provenance"], "provenance")
    return Model(Path(data["path"]), data["format"], data["key"], provenance)
