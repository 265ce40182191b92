"""Whether a graph opens and runs, and how far its outputs are from those of the graph that it was made from.

Both get the same inputs: the ``data``, else windows of the shipped text for models of text with their tokenizer, else
made-up ones of several sizes. The distance of an output is ``|after - before| / |before|``, over all inputs together;
that of whole numbers, flags and texts is the share that differs, and its limit the root of the other, as such values
turn where numbers nearly tie. One model is in memory at a time.

A graph has some noise of its own: sums in another order, ties that fall otherwise, drawn numbers. Where a distance is
above the ``limit``, it is measured as the distance between the graph before as it is and without ONNX Runtime's
optimizations, and five times that is allowed: where a graph rounds to int8 itself, the least change turns many values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from coldpress.data.batches.feeds import feeds_for
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.made_up import TRIES, feed
from coldpress.graphs.session import Session
from coldpress.graphs.signature import Input
from coldpress.models.model import Model, find_graphs
from coldpress.parts import Context, DataSource, Metric, Value, option
from coldpress.target import Target

Outputs = dict[str, Any]
_FEEDS = 3
_WINDOW = 32
#: a graph whose own noise is above this says nothing about another
_MOST_NOISE = 0.1
_TIMES_NOISE = 5.0
#: what the least change may cost a graph that rounds to int8 as it runs; limits below `_INEXACT` are of passes that
#: change nothing
_IN_STEPS, _INEXACT = 0.15, 5e-4
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul")
#: of numbers this small only rounding is left
_NOTHING = 1e-7
#: not compared where so many times the model's bytes are not free
_ROOM = 2.5
_PLAIN = {"graph_optimization_level": "disable_all"}
_BFLOAT16 = 16  # as ONNX numbers types
#: opened without a second copy of the weights
_MAPPED = {**_PLAIN, "config_entries": {"session.disable_prepacking": "1"}}


@dataclass(frozen=True)
class GraphDivergence(Metric):
    """Opens each graph of an ONNX model, and compares it with that of ``ctx.source``, if it gets one."""

    data: DataSource | None = option("where the inputs come from; left out: text or made-up ones", None)
    limit: float = option("distance above which the graph's own noise is measured", 0.0)
    renamed: dict[str, str] = option("inputs and outputs that have another name afterwards: before -> afterwards", dict)

    values: ClassVar[Mapping[str, Value]] = {
        "relative": Value("lower"),
        "noise": Value("neither"),
        "allowed": Value("neither"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    version: ClassVar[int] = 4

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        """The graph that is worst; ``unknown`` says why nothing was compared, if so. ColdpressError for one that does
        not open, or does not run where the one before did.
        """
        before = find_graphs(ctx.source.path) if ctx.source is not None else {}
        found = []
        for name, file in find_graphs(model.path).items():
            pair = _Pair(before.get(name), file, ctx, self)
            found.append({"graph": name, **pair.compared(model)})
        if not found:
            raise ColdpressError(f"{model.path} holds no ONNX graph", exit_code=WORK_FAILED)
        return max(found, key=lambda one: (bool(one.get("unknown")), one["relative"] - one["allowed"]))


@dataclass(frozen=True)
class _Pair:
    before: Path | None
    after: Path
    ctx: Context
    asked: GraphDivergence

    @property
    def _target(self) -> Target:
        here = self.ctx.target
        return here if here.is_here else replace(here, device="cpu", provider="CPUExecutionProvider")

    def compared(self, model: Model) -> dict[str, Any]:
        only_opened = self._why_only_opened()
        session = self._opened(_MAPPED if only_opened else None)
        if isinstance(session, str) or only_opened:
            return _unknown(session if isinstance(session, str) else only_opened)
        try:
            known, before = self._before(self._feeds(model))
        except ColdpressError as error:
            return _unknown(f"the graph before does not run here on inputs of ours: {error.message}")
        after = [self._after(session, one) for one in known]
        missing = [name for name in before[0] if self._new(name) not in session.outputs]
        if missing:
            raise ColdpressError(f"output '{missing[0]}' is gone", exit_code=WORK_FAILED)
        del session
        return self._judged(known, before, after)

    def _why_only_opened(self) -> str:
        """Why there is nothing to compare the graph with; "" if there is."""
        if self.before is None:
            return "there is no graph before it"
        return "it does not fit into the free memory twice" if _bytes(self.after) * _ROOM > _free_bytes() else ""

    def _opened(self, options: Mapping[str, Any] | None) -> Session | str:
        """The graph, open; or why that says nothing: it has operators that only another place has."""
        from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

        try:
            return Session(self.after, self._target, options)
        except ColdpressError as error:
            if not self.ctx.target.is_here and isinstance(error.__cause__, NoKernel):
                return f"{self.ctx.target.provider} is not here, and the CPU cannot run the graph: {error.message}"
            if self.before is not None and (why := self._closed_before()):
                return f"the graph before does not open here either: {why}"
            raise

    def _closed_before(self) -> str:
        try:
            Session(self.before or self.after, self._target)
        except ColdpressError as error:
            return error.message
        return ""

    def _feeds(self, model: Model) -> Iterator[dict[str, Any]]:
        """Inputs to try on the graph before, until enough of them run."""
        from coldpress.graphs.signature import signature

        given = feeds_for(model, self.after, self.asked.data, self.ctx, samples=_FEEDS, length=_WINDOW)
        if not given.are_random:
            yield from ({self._old(name): one for name, one in each.items()} for each in given.each())
            return
        inputs = _merged(signature(self.before or self.after), self._signature_after)
        for place, how in enumerate(TRIES):
            yield feed(inputs, self.after.parent, how, self.ctx.seed + place)

    def _before(self, feeds: Iterator[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Outputs]]:
        """The feeds that run, some of them, and the outputs for them."""
        assert self.before is not None
        session = Session(self.before, self._target)
        known, outputs, failed = [], [], None
        for one in feeds:
            try:
                outputs.append(_run(session, one, self._narrow))
            except ColdpressError as error:
                failed = failed or error
                continue
            known.append(one)
            if len(known) == _FEEDS:
                break
        if not known:
            raise failed or ColdpressError("there are no inputs")
        return known, outputs

    @property
    def _narrow(self) -> dict[str, np.dtype]:
        """The types of the inputs afterwards: numbers are rounded to them for both."""
        return {name: one.dtype for name, one in self._signature_after.items()}

    @property
    def _signature_after(self) -> dict[str, Input]:
        """What the graph takes afterwards, by the names before."""
        from coldpress.graphs.signature import signature

        return {self._old(name): one for name, one in signature(self.after).items()}

    def _new(self, name: str) -> str:
        return self.asked.renamed.get(name, name)

    def _old(self, name: str) -> str:
        return next((old for old, new in self.asked.renamed.items() if new == name), name)

    def _after(self, session: Session, one: dict[str, Any]) -> Outputs:
        try:
            outputs = _run(session, {self._new(name): array for name, array in one.items()}, {})
            return {self._old(name): value for name, value in outputs.items()}
        except ColdpressError as error:
            raise ColdpressError(
                f"it does not run on inputs on which the graph before runs: {error.message}", exit_code=WORK_FAILED
            ) from error

    def _judged(self, feeds: list[dict[str, Any]], before: list[Outputs], after: list[Outputs]) -> dict[str, Any]:
        limits = {name: _limit(before[0][name], self.asked.limit) for name in before[0]}
        far = {name: _distance([one[name] for one in before], [one[name] for one in after]) for name in limits}
        noise: dict[str, float] = {}
        if any(far[name] > limits[name] for name in limits):
            noise = self._noise(feeds, before)
        worst = max(limits, key=lambda name: far[name] - max(limits[name], _TIMES_NOISE * noise.get(name, 0.0)))
        own = noise.get(worst, 0.0)
        if far[worst] > limits[worst] and own > _MOST_NOISE:
            return _unknown(f"output '{worst}' differs by {own:.2g} from itself when the graph is optimized otherwise")
        allowed = max(limits[worst], _TIMES_NOISE * own, _IN_STEPS if self._is_in_steps else 0.0)
        numbers = {"relative": min(far[worst], 1e9), "noise": min(own, 1e9), "allowed": allowed}
        return {**numbers, "output": worst, "feeds": len(feeds)}

    @property
    def _is_in_steps(self) -> bool:
        """Whether the graph before rounds to int8 as it runs, and a pass changes numbers: the least change is a step
        then."""
        from coldpress.models.onnx_graphs import load_graph

        is_exact = self.asked.limit < _INEXACT
        return not is_exact and any(node.op_type in _ROUNDING for node in load_graph(self.before or self.after).graph)

    def _noise(self, feeds: list[dict[str, Any]], before: list[Outputs]) -> dict[str, float]:
        """How far the outputs of the graph before are from themselves: not optimized, and run once more, as some draw
        numbers."""
        assert self.before is not None
        plain = Session(self.before, self._target, _PLAIN)
        first, second = ([_run(plain, one, self._narrow) for one in feeds] for _ in range(2))
        return {
            name: max(
                _distance([one[name] for one in old], [one[name] for one in new])
                for old, new in ((before, first), (first, second))
            )
            for name in before[0]
        }


def _unknown(why: str) -> dict[str, Any]:
    return {"relative": 0.0, "noise": 0.0, "allowed": 0.0, "unknown": why}


def _run(session: Session, one: Mapping[str, Any], narrow: Mapping[str, np.dtype]) -> Outputs:
    """The outputs for made-up inputs or data; floats are rounded to the types of ``narrow`` first."""
    given = {name: array for name, array in one.items() if isinstance(array, np.ndarray)}
    for name in given.keys() & narrow.keys():
        if given[name].dtype.kind == narrow[name].kind == "f":
            given[name] = given[name].astype(narrow[name])
    wanted = session.inputs
    if given.keys() != wanted.keys():
        return session.run(given)
    return session.outputs_for({name: _as(given[name], wanted[name].dtype) for name in wanted})


def _as(array: np.ndarray, dtype: np.dtype) -> Any:
    """An array in the type of an input; bfloat16, which numpy has no type for, as an OrtValue."""
    from onnxruntime import OrtValue

    cast = array if array.dtype == dtype else array.astype(dtype)
    if dtype.name != "bfloat16":
        return cast
    return OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(cast).view(np.uint16), _BFLOAT16)


def _merged(before: Mapping[str, Input], after: Mapping[str, Input]) -> dict[str, Input]:
    """What both take: the sizes that a pass fixed, else those that were open before."""
    return {name: replace(one, shape=after[name].shape or one.shape) if name in after else one
            for name, one in before.items()}  # fmt: skip


def _limit(value: Any, limit: float) -> float:
    return limit if _is_float(value) else limit**0.5


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fcV"


def _distance(before: list[Any], after: list[Any]) -> float:
    """How far values for several inputs are apart; infinite where there are more of them, or others are not finite."""
    pairs = [(one, two) for b, a in zip(before, after, strict=True) for one, two in _leaves(b, a)]
    if any(np.shape(one) != np.shape(two) for one, two in pairs):
        return float("inf")
    if not all(_is_float(one) for one, _ in pairs):
        different = sum(int(np.sum(one != two)) for one, two in pairs)
        return different / max(1, sum(np.size(one) for one, _ in pairs))
    off = size = count = 0.0
    wide = np.complex128 if pairs and pairs[0][0].dtype.kind == "c" else np.float64
    for one, two in ((one.astype(wide), two.astype(wide)) for one, two in pairs):
        finite = np.isfinite(one)
        same = finite | (np.isnan(one) & np.isnan(two)) | (one == two)
        if not same.all() or not np.isfinite(two[finite]).all():
            return float("inf")
        off += float(np.square(np.abs(one[finite] - two[finite])).sum())
        size, count = size + float(np.square(np.abs(one[finite])).sum()), count + one.size
    return float(off**0.5 / max(size**0.5, _NOTHING * max(count, 1.0) ** 0.5))


def _leaves(before: Any, after: Any) -> Iterator[tuple[Any, Any]]:
    """The arrays of sequences and maps, in pairs."""
    if isinstance(before, dict) and isinstance(after, dict):
        yield np.array(sorted(before)), np.array(sorted(after))
        for key in before.keys() & after.keys():
            yield from _leaves(before[key], after[key])
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, two in zip(before, after, strict=True):
            yield from _leaves(one, two)
    else:
        yield (np.asarray(before), np.asarray(after))


def _bytes(file: Path) -> int:
    from coldpress.models.onnx_graphs import external_files, load_graph

    return file.stat().st_size + sum(one.stat().st_size for one in external_files(load_graph(file)))


def _free_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
