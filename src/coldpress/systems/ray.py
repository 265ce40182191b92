"""A Ray cluster: jobs are spread over its nodes, each of which has this version of coldpress.

What a job reads is fetched by the node that does it, unless it lies there under the same path; its result comes back
into the store of this machine. A node that is lost costs the jobs that it was at, which are sent to another one. Jobs
that take times have a node for themselves, and all of them nodes of one kind.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from coldpress.environment import cache_folder
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.jobs import courier
from coldpress.jobs.job import Job, Progress, Result, lookup, silent
from coldpress.jobs.node import Node, check_installed, this_node
from coldpress.jobs.store import Store
from coldpress.jobs.system import System
from coldpress.parts import check_needs, option, schema
from coldpress.systems.local import Local

_LINES_OF_ERRORS = 12
_PIECES_AHEAD = 4


@dataclass(frozen=True)
class Ray(System):
    """The address of a cluster, and what a job takes of a node."""

    title: ClassVar[str] = "a Ray cluster"
    needs: ClassVar[tuple[str, ...]] = ("ray",)

    address: str = option("address of the cluster: HOST:PORT, or auto for the one that this machine is in", "auto")
    num_cpus: float = option("processors that a job takes", 1.0)
    num_gpus: float = option("GPUs that a job for a GPU takes", 1.0)
    resources: dict[str, float] = option("what else a job takes, as the nodes call it", dict)
    jobs_at_once: int | None = option("jobs side by side; by default as many as the nodes have room for", None)
    retries: int = option("how often a job is sent again whose node was lost", 3)
    cache_dir: str | None = option("folder of every node where its jobs keep files; by default its cache", None)

    def __post_init__(self) -> None:
        if self.num_cpus <= 0 or self.num_gpus <= 0 or self.retries < 0 or (self.jobs_at_once or 1) < 1:
            raise ColdpressError("ray: num_cpus, num_gpus and jobs_at_once must be above 0, retries at least 0")

    @property
    def workers(self) -> int:
        if self.jobs_at_once:
            return self.jobs_at_once
        return max(1, sum(int(one.cpus // self.num_cpus) for one in self._members().values()))

    @property
    def machine(self) -> Mapping[str, str | int]:
        """The kind of machine of which there are most: times are taken there."""
        return self._kind("cpu")

    def check(self) -> None:
        """Refuses a cluster with a node that would do jobs in another way."""
        own = this_node()
        for name, member in self._members().items():
            for what, there, here in (
                ("Python", member.node.python, own.python),
                ("coldpress, as its files tell,", member.node.sources[:12], own.sources[:12]),
            ):
                if there != here:
                    raise ColdpressError(
                        f"node {name} has another {what} than this machine: {there} instead of {here}",
                        hint="install the same on every node, and start Ray there anew",
                    )
        self._able("cpu")

    def placed(self, job: Job) -> Job:
        machine, device = self._kind(job.target.device), job.target.device
        kin = (member.node for member in self._able(device).values() if member.node.machine == machine)
        node = next(kin, None) or _none_left(job)
        installed = {name: node.version(name) for name in job.needs}
        missing = [name for name, version in installed.items() if version is None]
        if missing:
            raise ColdpressError(
                f"'{job.part}' needs {', '.join(missing)}, which the nodes lack",
                hint=f"install it on every node: pip install {' '.join(missing)}",
            )
        return replace(job, machine=dict(machine), installed=installed)

    def map(self, jobs: Iterable[Job], store: Store, progress: Progress = silent) -> Iterator[tuple[Job, Result]]:
        for job in jobs:
            progress(job.part.replace("_", " "), 0, 0)
            with store.lock(job.key):  # of equal jobs of several threads or programs one is sent
                result = lookup(job, store) or self._sent(job, store)
            yield job, result

    def _sent(self, job: Job, store: Store) -> Result:
        """The result of a job that is sent until a node lives as long as it takes."""
        from ray.exceptions import RayError, RayTaskError

        job = job.moved(Path.absolute)
        for tries_left in reversed(range(self.retries + 1)):
            try:
                with self._node_for(job) as options, closing(_pieces(options, self._request(job))) as pieces:
                    return courier.received(job, store, pieces)
            except RayTaskError as error:
                tail = "\n  ".join(str(error).strip().splitlines()[-_LINES_OF_ERRORS:])
                raise ColdpressError(f"'{job.part}' failed on a node:\n  {tail}", exit_code=WORK_FAILED) from None
            except (RayError, courier.Damaged) as error:
                if not tries_left:
                    raise ColdpressError(
                        f"'{job.part}' was sent {self.retries + 1} times, and did not come back: {error}",
                        hint="were nodes lost, or do they have too little memory?",
                        exit_code=WORK_FAILED,
                    ) from None
        raise AssertionError  # the last try returns or raises

    def _request(self, job: Job) -> dict[str, Any]:
        return {"job": job.to_json(), "inputs": courier.inputs_to_json(job.inputs), "cache_dir": self.cache_dir}

    def _members(self) -> dict[str, _Member]:
        """The nodes that do jobs, by their ids; those that joined are asked what they are."""
        _connect(self.address)
        return _members()

    def _able(self, device: str) -> dict[str, _Member]:
        """The nodes that lend what a job for a device takes. ColdpressError without any: Ray would wait for one."""
        takes = {"CPU": self.num_cpus, **self.resources, **({"GPU": self.num_gpus} if device == "gpu" else {})}
        found = {
            name: member
            for name, member in self._members().items()
            if all(member.lends.get(what, 0.0) >= amount for what, amount in takes.items())
        }
        if not found:
            asked = ", ".join(f"{what} {amount:g}" for what, amount in takes.items())
            raise ColdpressError(f"no node lends what a job takes: {asked}", hint="ask for less, or start such a node")
        return found

    def _kind(self, device: str) -> Mapping[str, str | int]:
        """The machine that most of these nodes are; as long as this program runs, whatever nodes come and go."""
        asked = self.address, self.num_cpus, self.num_gpus, tuple(sorted(self.resources.items())), device
        if asked not in _kinds:
            _kinds[asked] = _commonest(member.node for member in self._able(device).values())
        return _kinds[asked]

    @contextmanager
    def _node_for(self, job: Job) -> Iterator[dict[str, Any]]:
        """How Ray is asked for a node that a job fits on: any, unless the nodes differ in what counts for the job.

        One that takes times gets all processors of a node.
        """
        able = self._able(job.target.device)
        fitting = {name: one for name, one in able.items() if _fits(one, job)} or _none_left(job)
        takes: dict[str, Any] = {"num_cpus": self.num_cpus, "resources": self.resources}
        if job.target.device == "gpu":
            takes["num_gpus"] = self.num_gpus
        if len(fitting) == len(able) and not job.is_timed:
            yield {**takes, "scheduling_strategy": "SPREAD"}
            return
        with _least_busy(fitting) as name:
            if job.is_timed:
                takes["num_cpus"] = fitting[name].cpus
            yield {**takes, "scheduling_strategy": _on(name)}


@dataclass(frozen=True)
class _Member:
    """A node of the cluster: what it tells of itself, and what it lends, as Ray calls it."""

    node: Node
    lends: Mapping[str, float]

    @property
    def cpus(self) -> float:
        return self.lends.get("CPU", 0.0)


def _fits(member: _Member, job: Job) -> bool:
    """Whether a job gives the same on a node as its key says."""
    versions = all(member.node.version(name) == known for name, known in (job.installed or {}).items())
    return versions and (not job.counts_machine or member.node.machine == job.machine)


def _none_left(job: Job) -> NoReturn:
    raise ColdpressError(
        f"no node of the kind that '{job.part}' is done on is left",
        hint="start one, or run anew for the kind that there is",
        exit_code=WORK_FAILED,
    )


def _commonest(nodes: Iterable[Node]) -> Mapping[str, str | int]:
    """The machine that most nodes are; of several the first by its words, whatever order the nodes came in."""
    kinds = Counter(json.dumps(node.machine, sort_keys=True) for node in nodes)
    found: dict[str, str | int] = json.loads(min(kinds, key=lambda kind: (-kinds[kind], kind)))
    return found


_lock = threading.Lock()
#: by the id of a node: the jobs that this program sent to that very node and that are not done
_busy: Counter[str] = Counter()
#: what times are taken on
_kinds: dict[tuple[Any, ...], Mapping[str, str | int]] = {}
#: the address of the cluster that this program has joined
_joined: list[str] = []
#: by the id of a node: what it told
_known: dict[str, Node] = {}


@contextmanager
def _least_busy(members: Mapping[str, _Member]) -> Iterator[str]:
    with _lock:
        name = min(sorted(members), key=lambda one: _busy[one] / members[one].cpus)
        _busy[name] += 1
    try:
        yield name
    finally:
        with _lock:
            _busy[name] -= 1


def _connect(address: str) -> None:
    """Join the cluster as a program; once, for all threads. ColdpressError when there is none."""
    check_needs(Ray)
    import ray

    with _lock:
        if ray.is_initialized():
            if _joined and _joined != [address]:
                raise ColdpressError(
                    f"this program has joined the cluster at '{_joined[0]}' and cannot join '{address}', too",
                    hint="use one cluster in a workflow",
                )
            return
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:  # what Ray raises for no cluster, another version
            raise ColdpressError(
                f"no cluster of Ray answers at '{address}': {str(error).splitlines()[0]}",
                hint="start it with 'ray start --head', and this program on one of its nodes",
            ) from None
        _joined[:] = [address]


def _members() -> dict[str, _Member]:
    import ray

    alive = {one["NodeID"]: one["Resources"] for one in ray.nodes() if one["Alive"]}
    with _lock:
        asked = {name: _remote(_tell).options(num_cpus=0, scheduling_strategy=_on(name)).remote()
                 for name in alive if name not in _known}  # fmt: skip
        for name, answer in asked.items():
            try:
                _known[name] = schema.build(Node, ray.get(answer), "node")
            except ray.exceptions.RayTaskError as error:
                last = str(error).strip().splitlines()[-1]
                raise ColdpressError(
                    f"node {name} cannot do jobs: {last}", hint="install the coldpress of this machine there"
                ) from None
            except ray.exceptions.RayError:
                continue  # it is gone by now
    told = {name: _Member(_known[name], lends) for name, lends in alive.items() if name in _known}
    lending = {name: member for name, member in told.items() if member.cpus}
    if not lending:
        raise ColdpressError("the cluster has no node that lends processors", hint="start one with --num-cpus")
    return lending


def _on(node: str) -> Any:
    """This node, or none."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _remote(function: Any, **options: Any) -> Any:
    """What Ray calls a function or class on a node by; it never tries again by itself, as we choose the node."""
    import ray

    return ray.remote(max_retries=0, **options)(function)


def _pieces(options: Mapping[str, Any], request: Mapping[str, Any]) -> Generator[Any, None, None]:
    """What a node gives for a request, piece by piece; it ends with this generator."""
    import ray

    reader = _reader()
    ahead = {"num_returns": "streaming", "_generator_backpressure_num_objects": _PIECES_AHEAD}
    answer = _remote(_work).options(**options, **ahead).remote(request, reader)
    is_done = False
    try:
        for piece in answer:
            found = ray.get(piece)
            if isinstance(found, Mapping) and "error" in found:
                raise ColdpressError(found["error"], hint=found["hint"], exit_code=found["exit_code"])
            yield found
        is_done = True
    finally:
        if not is_done:
            ray.cancel(answer, force=True)


_readers: dict[str, Any] = {}


def _reader() -> Any:
    """An actor that reads files of this machine for the nodes; there is one as long as this program runs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    with _lock:
        if here not in _readers:
            actor = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=_on(here))(_Reader)
            _readers[here] = actor.remote()
        return _readers[here]


class _Reader:
    def read(self, path: str, offset: int, size: int) -> bytes:
        with Path(path).open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)


# On a node


def _tell() -> dict[str, Any]:
    told: dict[str, Any] = schema.plain(this_node())
    return told


def _work(request: Mapping[str, Any], reader: Any) -> Iterator[Any]:
    import ray

    def read(path: str, offset: int, size: int) -> bytes:
        data: bytes = ray.get(reader.read.remote(path, offset, size))
        return data

    yield from work(request, read)


def work(request: Mapping[str, Any], read: courier.Read) -> Iterator[Any]:
    """Do a job on a node, in its store, and give the pieces of its result; an error as what it says."""
    store = Store(request["cache_dir"] or cache_folder() / "ray")
    try:
        job = Job.from_json(request["job"])
        check_installed(job.installed or {})
        job = courier.brought(job, courier.inputs_from_json(request["inputs"]), store, read)
        for _, result in Local().map([job], store):
            yield from courier.sent(job, store, result)
    except ColdpressError as error:
        yield {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
