"""Every rule looks at every graph of a model; what its remedy saves is measured, if that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coldpress.errors import ColdpressError
from coldpress.graphs.session import read_options
from coldpress.graphs.shapes import infer_shapes
from coldpress.jobs.job import Job
from coldpress.jobs.system import Executor
from coldpress.measuring.noise import is_tie
from coldpress.models.model import Model, find_graphs
from coldpress.models.onnx_graphs import load_graph
from coldpress.parts import Finding
from coldpress.passes.mend import rules
from coldpress.runs.evaluation import in_turns
from coldpress.target import Target

_ROUNDS = 3
_RUNS = {"warmup": 2, "repeats": 10}
_TIME = "latency_p50_ms"


@dataclass(frozen=True)
class Found:
    """A finding, with the rule that made it and the graph, by its name in the model's folder."""

    rule: str
    graph: str
    finding: Finding


def lint(model: Model, target: Target, runtime: str | None = None) -> Iterator[Found]:
    """What the rules find in an ONNX model for a target, graph by graph; ``runtime``: the version of ONNX Runtime that
    shall load it, if not the installed one.

    ColdpressError for a model of another format.
    """
    if model.format != "onnx":
        raise ColdpressError(
            f"{model.path} is a model of the format {model.format}; rules look at ONNX graphs",
            hint="press it first: coldpress auto-opt",
        )
    options = read_options(model.path if model.path.is_dir() else model.path.parent)
    for name, file in find_graphs(model.path).items():
        graph = load_graph(file)
        infer_shapes(graph)
        for rule, made in rules(runtime).items():
            for finding in made.look(graph, target, options):
                yield Found(rule, name, finding)


@dataclass(frozen=True)
class Saving:
    """What the remedy of a rule saves: the median time of a run before and after, in milliseconds. ``is_tie``: the
    difference is within the noise."""

    rule: str
    before_ms: float
    after_ms: float
    is_tie: bool


def savings(model: Model, target: Target, named: Sequence[str], executor: Executor) -> list[Saving]:
    """What the remedies of rules save, each by itself, on made-up inputs; none for a rule whose remedy changes
    nothing."""
    mended = {}
    for rule in named:
        made = executor.result(Job("pass", "mend", {"rules": [rule], "runtime": None}, model, target)).model
        if made is not None and not any("nothing to put right" in remark for remark in made.provenance.remarks):
            mended[rule] = made
    jobs = [Job("metric", "latency", dict(_RUNS), one, target) for one in (model, *mended.values())]
    before, *after = in_turns(jobs, _ROUNDS, executor) if mended else [{}]
    return [
        Saving(rule, before[_TIME]["value"], one[_TIME]["value"], is_tie(before[_TIME]["rounds"], one[_TIME]["rounds"]))
        for rule, one in zip(mended, after, strict=True)
    ]
