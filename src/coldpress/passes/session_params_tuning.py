"""Find the session options with which a model runs fastest on this machine, and write them beside it.

All combinations are measured in turns, forwards and backwards, so that a machine that slows down slows all of them;
after each round those that are far behind drop out. The fastest is kept, unless the default is no slower within the
noise: then the default stays. The batch comes from ``data``; without it from a text that coldpress ships, or random
numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, ClassVar

import numpy as np

from coldpress.data.batches.feeds import feeds_for
from coldpress.errors import ColdpressError
from coldpress.graphs.imported.options import LEVELS, MODES
from coldpress.graphs.session import Session
from coldpress.measuring.noise import turn
from coldpress.models.model import Model, files_of, find_graphs
from coldpress.models.planned import Planned
from coldpress.models.provenance import TriedOptions
from coldpress.parts import Closeness, Context, DataSource, Pass, option
from coldpress.passes.session_options import closeness_of, with_options
from coldpress.target import Target

#: sessions are kept open between rounds while they need no more memory than this
_OPEN_BYTES = 2_000_000_000
#: how far behind the fastest a combination drops out
_FAR_BEHIND = 1.5


@dataclass(frozen=True)
class SessionParamsTuning(Pass):
    """Find the session options with which a model runs fastest on this machine, and write them beside it."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    is_timed: ClassVar[bool] = True

    data: DataSource | None = option("where the batch comes from that is run", None)
    optimization_levels: tuple[str, ...] = option("levels of graph optimization to try", ("all", "extended"))
    intra_threads: tuple[int, ...] = option("threads inside an operator to try; default: 1, 2, 4, ... all", ())
    execution_modes: tuple[str, ...] = option("execution modes to try", ("sequential",))
    inter_threads: tuple[int, ...] = option("threads beside each other to try, in the parallel mode", (2,))
    io_bind: bool = option("keep inputs and outputs where the device has them", False)
    extra_session_config: dict[str, str] = option("entries of the session's configuration that all have", dict)
    provider_options: dict[str, str] = option("options of the execution provider that all have", dict)
    rounds: int = option("turns that each combination gets", 5)
    runs: int = option("timed runs in a turn", 10)

    @property
    def closeness(self) -> Closeness:
        return closeness_of(self.provider_options)

    def check(self, model: Model | Planned, target: Target) -> None:
        for name, known in (("optimization_levels", LEVELS), ("execution_modes", MODES)):
            for value in getattr(self, name):
                if value not in known:
                    raise ColdpressError(f"{name}: '{value}' is not among {', '.join(known)}")
        for name in ("optimization_levels", "execution_modes"):
            if not getattr(self, name):
                raise ColdpressError(f"{name} names nothing to try", hint="leave it out for the usual ones")
        if min((*self.intra_threads, *self.inter_threads, 1)) < 1 or self.rounds < 1 or self.runs < 1:
            raise ColdpressError(
                "numbers of threads, rounds and runs are 1 or more", hint="leave them out for the usual ones"
            )
        if not target.is_here:
            raise ColdpressError(
                f"{target.provider} is not on this machine, so nothing can be measured on it",
                hint="run this where the model shall run",
            )

    def run(self, model: Model, ctx: Context) -> Model:
        graphs = list(find_graphs(model.path).values())
        if len(graphs) != 1:
            raise ColdpressError(
                f"{model.path} holds {len(graphs)} graphs; options are tuned for one", hint="pass a single one"
            )
        feeds = feeds_for(model, graphs[0], self.data, ctx, samples=1)
        feed = {name: value for name, value in next(feeds.each()).items() if isinstance(value, np.ndarray)}
        size = sum(file.stat().st_size for file in files_of(model.path))
        race = _Race(model, ctx, feed, self, size)
        race.run()
        best = race.best()
        by_time = sorted(race.tried, key=lambda one: one.ms)
        tried = tuple(TriedOptions(one.options, one.ms, one.noise_ms, len(one.turns_ms)) for one in by_time)
        made = with_options(model, ctx, best.options, tried)
        remark = f"session options: {_said(best.options)} takes {best.ms:.3g} ms, the default {race.tried[0].ms:.3g} ms"
        return replace(made, provenance=made.provenance.remarked(f"{remark} (on {feeds.text})"))

    def combinations(self, target: Target) -> list[dict[str, Any]]:
        """All options to try; the first is ONNX Runtime's default with the target's threads."""
        threads = self.intra_threads or _doubled(target.thread_count)
        default = {"graph_optimization_level": "all", "intra_op_num_threads": target.thread_count,
                   "execution_mode": "sequential"}  # fmt: skip
        found = [default]
        for level, mode, intra in product(self.optimization_levels, self.execution_modes, threads):
            one = {"graph_optimization_level": level, "intra_op_num_threads": intra, "execution_mode": mode}
            inters = self.inter_threads if mode == "parallel" else ()
            found += [{**one, "inter_op_num_threads": inter} for inter in inters] or [one]
        extra: dict[str, Any] = {"config_entries": self.extra_session_config} if self.extra_session_config else {}
        if self.provider_options:
            extra |= {"provider_options": {target.provider: self.provider_options}}
        return [{**one, **extra} for index, one in enumerate(found) if one not in found[:index]]


@dataclass
class _Contender:
    options: dict[str, Any]
    turns_ms: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        return statistics.median(self.turns_ms)

    @property
    def noise_ms(self) -> float:
        return (max(self.turns_ms) - min(self.turns_ms)) / 2


class _Race:
    """Combinations that take turns; ``tried`` holds all of them, the default first."""

    def __init__(
        self, model: Model, ctx: Context, feed: dict[str, np.ndarray], settings: SessionParamsTuning, size: int
    ):
        self._model, self._ctx, self._feed, self._settings = model, ctx, feed, settings
        self.tried = [_Contender(options) for options in settings.combinations(ctx.target)]
        self._open: dict[int, Any] | None = {} if size * len(self.tried) <= _OPEN_BYTES else None

    def run(self) -> None:
        left = list(self.tried)
        for number in range(self._settings.rounds):
            for one in turn(left, number):
                one.turns_ms.append(self._turn(one))
            self._ctx.progress("measuring session options", number + 1, self._settings.rounds)
            fastest = min(one.ms for one in left)
            left = [one for one in left if one is self.tried[0] or one.ms <= _FAR_BEHIND * fastest]
        self._open = None

    def best(self) -> _Contender:
        """The fastest, or the default where the difference to it is noise."""
        default, fastest = self.tried[0], min(self.tried, key=lambda one: one.ms)
        is_clear = default.ms - fastest.ms > default.noise_ms + fastest.noise_ms
        return fastest if is_clear else default

    def _turn(self, one: _Contender) -> float:
        """Milliseconds of a run, the median of a turn; a first run does not count."""
        with self._step(one) as step:
            step()
            taken = []
            for _ in range(self._settings.runs):
                started = time.perf_counter()
                step()
                taken.append(time.perf_counter() - started)
        return 1e3 * statistics.median(taken)

    @contextmanager
    def _step(self, one: _Contender) -> Iterator[Any]:
        if self._open is not None and id(one) in self._open:
            yield self._open[id(one)]
            return
        session = Session(self._model.path, self._ctx.target, one.options, is_timed=True)
        step = session.step(self._feed, self._settings.io_bind)
        if self._open is not None:
            self._open[id(one)] = step
        yield step


def _doubled(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and ``most``."""
    return tuple(sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most}))


def _said(options: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in options.items() if name not in ("config_entries", "provider_options")
    )
