"""Of the ways to a precision, keep for each graph the one that makes it fastest here; the graph as it is where none
does.

What makes one graph faster makes another slower: dynamic int8 pays for matrix products, static int8 for convolutions,
weights in 4 bits where they are read more than computed with. So each way that a graph allows is tried, compared with
the graph before on the same inputs, held to its own limit of loss, and timed beside it, in turns. A way is kept if it
is faster, or as fast, within the noise, and at least a tenth smaller. What generates is not timed here: a made-up step
says nothing about its answers, so `quantize_onnx` takes it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from coldpress import parts
from coldpress.data.batches.feeds import feeds_for
from coldpress.errors import ColdpressError
from coldpress.graphs.session import Session
from coldpress.measuring.noise import is_tie, turn
from coldpress.models.model import Model, find_graphs
from coldpress.models.onnx_graphs import external_files, load_graph, save_graphs
from coldpress.models.planned import Planned
from coldpress.parts import Closeness, Context, DataSource, Pass, option
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

PRECISIONS = ("int8", "int4", "fp16", "fp32")
_FUSION = "ort_transformers_optimization"
_PRODUCTS = ("MatMul", "Gemm", "LSTM", "GRU", "Attention")
#: how much smaller a way must make a graph that it makes no faster
_SMALLER = 0.9
#: how far behind the fastest a way is timed no further
_FAR_BEHIND = 2.0


@dataclass(frozen=True)
class OnnxFastest(Pass):
    """Of the ways to a precision, keep the one that makes an ONNX graph fastest here; the graph where none does."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    is_timed: ClassVar[bool] = True
    fits_machine: ClassVar[bool] = True

    precision: str = option("what numbers may be rounded to", "int8", PRECISIONS)
    data: DataSource | None = option("what static int8 is calibrated on, and graphs are compared on", None)
    rounds: int = option("turns that each way gets", 7)
    runs: int = option("timed runs in a turn", 5)

    @property
    def closeness(self) -> Closeness:
        limits = [one.closeness for one in (way.made() for way in _ways(self.precision)) if one.closeness is not None]
        return max(limits, key=lambda one: one.relative)

    def check(self, model: Model | Planned, target: Target) -> None:
        if self.rounds < 2 or self.runs < 1:
            raise ColdpressError("rounds and runs: two turns of one run are the least", hint="leave them out")
        if not target.is_here:
            raise ColdpressError(
                f"{target.provider} is not on this machine, so nothing can be timed on it",
                hint="run this where the model shall run, or name a pass, such as onnx_float_to_float16",
            )
        if self.data is not None:
            self.data.make().check(model)

    def run(self, model: Model, ctx: Context) -> Model:
        chosen: dict[str, _Result] = {}
        remarks: list[str] = []
        for place, (name, file) in enumerate(find_graphs(model.path).items()):
            folder = ctx.scratch / f".{place}"
            folder.mkdir()
            trial = _Trial(name, replace(model, path=file), replace(ctx, scratch=folder), self)
            chosen[name] = trial.best()
            remarks += trial.remarks
        if all(one.way is None for one in chosen.values()):
            return replace(model, provenance=model.provenance.remarked(*remarks))
        graphs = {name: load_graph(one.graph) for name, one in chosen.items()}
        used = {one for file in find_graphs(model.path).values() for one in external_files(load_graph(file))}
        save_graphs(graphs, model.path, used, ctx.scratch)
        _remove(ctx.scratch)
        known = model.provenance
        if any(one.rounds for one in chosen.values()):
            known = replace(known, precision=self.precision, layers=())
        return Model(ctx.scratch, "onnx", "", known.remarked(*remarks))


@dataclass(frozen=True)
class Way:
    """A pass that may make a graph faster. ``fits``: whether it has anything to do in a graph with these operators."""

    says: str
    part: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    fits: Callable[[set[str]], bool] = lambda operators: True

    def made(self, data: DataSource | None = None) -> Pass:
        made: Pass = parts.find("passes", self.part)(**self.parameters)
        takes_data = data is not None and self.part == "onnx_static_quantization"
        return replace(made, data=data) if takes_data else made  # type: ignore[type-var]


def _has_products(operators: set[str]) -> bool:
    return not operators.isdisjoint(_PRODUCTS)


def _ways(precision: str) -> tuple[Way, ...]:
    """The ways to a precision; fewer bits than are asked for are no way, fusion alone always is one."""
    fused = Way("fused", _FUSION, fits=lambda operators: "Softmax" in operators and _has_products(operators))
    weights = Way(f"weights in {precision}", "quantize_onnx", {"precision": precision}, _has_products)
    found = {
        "int8": (
            Way("dynamic int8", "onnx_dynamic_quantization", {}, _has_products),
            Way("static int8", "onnx_static_quantization", {}, lambda operators: "Conv" in operators),
            weights,
        ),
        "int4": (weights,),
        "fp16": (Way("float16", "onnx_float_to_float16"),),
        "fp32": (Way("simplified", "onnx_peephole_optimizer"),),
    }
    return (fused, *found[precision])


@dataclass
class _Result:
    """A graph that may be kept; ``way``: None for the one that there was. ``rounds``: whether that changed numbers.
    ``turns``: milliseconds of a run in each.
    """

    way: str | None
    graph: Path
    bytes: int
    rounds: bool = False
    turns: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        return statistics.median(self.turns)


class _Trial:
    """All ways for one graph."""

    def __init__(self, name: str, model: Model, ctx: Context, asked: OnnxFastest):
        self.name, self._model, self._ctx, self._asked = name, model, ctx, asked
        self.remarks: list[str] = []

    def best(self) -> _Result:
        """The graph to keep, after all were timed; `remarks` say why."""
        before = _Result(None, self._model.path, _bytes(self._model.path))
        results = [before, *self._made()]
        if len(results) == 1:
            self._say("there is nothing in it that can be made faster this way, so it stays as it is")
            return before
        self._time(results)
        kept = self._pick(results)
        told = ", ".join(f"{one.way or 'as it was'} {one.ms:.3g} ms" for one in sorted(results, key=lambda one: one.ms))
        what = f"{kept.way} is kept" if kept.way else "nothing that was tried makes it faster, so it stays as it is"
        self._say(f"{what}: {told}")
        return kept

    def _say(self, text: str) -> None:
        self.remarks.append(f"{self.name}: {text}")

    def _made(self) -> Iterator[_Result]:
        """What the ways made of the graph, as far as they can do it and lose no more than they may."""
        graph = load_graph(self._model.path)
        operators = {node.op_type for node in _nodes(graph)}
        start = self._model
        for way in _ways(self._asked.precision):
            if not way.fits(operators):
                continue
            self._ctx.progress(f"trying {way.says}", 0, 0)
            made = self._attempt(way, start)
            if made is not None:
                start = made if way.part == _FUSION else start
                says = f"fused, {way.says}" if start is not self._model and way.part != _FUSION else way.says
                file = made.path / "model.onnx"
                yield _Result(says, file, _bytes(file), way.part != _FUSION)

    def _attempt(self, way: Way, start: Model) -> Model | None:
        """The model that a way makes; None, and a remark, where it cannot, or loses too much."""
        part, folder = way.made(self._asked.data), self._ctx.scratch / way.part
        folder.mkdir()
        try:
            part.check(start, self._ctx.target)
            made = part.run(start, replace(self._ctx, scratch=folder))
            if made.path == start.path:
                return None
            numbers = self._divergence(part, made)
        except ColdpressError as error:
            self._say(f"{way.says} was left out: {error.message}")
            return None
        if numbers.get("unknown") or numbers["relative"] <= numbers["allowed"]:
            return replace(made, format="onnx")
        self._say(f"{way.says} was left out: its outputs differ by {numbers['relative']:.2g}")
        return None

    def _divergence(self, part: Pass, made: Model) -> dict[str, Any]:
        limit = part.closeness.relative if part.closeness is not None else 0.0
        metric = parts.find("metrics", "graph_divergence")(data=self._asked.data, limit=limit)
        numbers: dict[str, Any] = metric.measure(made, replace(self._ctx, source=self._model))
        return numbers

    def _time(self, results: Sequence[_Result]) -> None:
        """Time all graphs in turns; those that fall far behind get no more of them."""
        feeds = feeds_for(self._model, self._model.path, self._asked.data, self._ctx, samples=1)
        feed = {name: one for name, one in next(feeds.each()).items() if isinstance(one, np.ndarray)}
        steps = {id(one): Session(one.graph, self._ctx.target, is_timed=True).step(feed) for one in results}
        left = list(results)
        for number in range(self._asked.rounds):
            for one in turn(left, number):
                one.turns.append(_turn(steps[id(one)], self._asked.runs))
            self._ctx.progress(f"timing {self.name}", number + 1, self._asked.rounds)
            fastest = min(one.ms for one in left)
            left = [one for one in left if one.way is None or one.ms <= _FAR_BEHIND * fastest]

    def _pick(self, results: Sequence[_Result]) -> _Result:
        before, *others = results
        whole = [one for one in others if len(one.turns) == self._asked.rounds]
        ties = [one for one in whole if is_tie(one.turns, before.turns) and one.bytes <= _SMALLER * before.bytes]
        faster = [one for one in whole if not is_tie(one.turns, before.turns) and one.ms < before.ms]
        return min(faster or ties or [before], key=lambda one: one.ms)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    from coldpress.graphs.queries import all_nodes

    return all_nodes(model)


def _turn(step: Callable[[], object], runs: int) -> float:
    """Milliseconds of a run, the median of a turn; a first run does not count."""
    step()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return 1e3 * statistics.median(taken)


def _bytes(file: Path) -> int:
    return file.stat().st_size + sum(one.stat().st_size for one in external_files(load_graph(file)))


def _remove(scratch: Path) -> None:
    """Remove what was tried, now that the result stands beside it."""
    import shutil

    for folder in scratch.glob(".[0-9]*"):
        shutil.rmtree(folder)
