"""Passes that rewrite ONNX graphs in memory. Those that follow each other share one load and one save.

As the passes of onnx_ir do, they get a graph and give one back. Its weights stay in the files that they came from,
mapped, until all passes are done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from coldpress.models.model import Model, find_graphs
from coldpress.models.planned import Planned
from coldpress.models.provenance import Provenance
from coldpress.parts import Context, Pass
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class GraphContext(Context):
    """What a pass gets besides a graph: ``name``, the place of the graph in its model, by which messages name it; and
    ``file``, where it was read, with what lies beside it."""

    name: str = ""
    file: Path = field(default_factory=Path)


@dataclass(frozen=True)
class Rewritten:
    """What a pass made of a graph: the graph itself, changed in place, or a new one; and ``remarks`` for the report."""

    graph: ir.Model
    remarks: tuple[str, ...] = ()


class GraphPass(Pass):
    """One transformation of ONNX graphs. Subclasses are frozen dataclasses that have a `rewrite`.

    A tensor may be an ``ir.ExternalTensor``, whose numbers are mapped when they are asked for, and may become an
    ``ir.LazyTensor``, whose numbers are computed when the graph is saved.
    """

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)

    def rewrite(self, graph: ir.Model, ctx: GraphContext) -> Rewritten:
        """Change a graph, or make a new one of it. Files that shall lie beside it are written to ``ctx.scratch``."""
        raise NotImplementedError

    def check_graphs(self, graphs: Mapping[str, ir.Model], target: Target) -> None:
        """Raise ColdpressError when this pass cannot do its work on the graphs of a model, by their names."""

    def check(self, model: Model | Planned, target: Target) -> None:
        """Check parameters, then graphs if they are there; what checks parameters calls this at its end."""
        from coldpress.models.onnx_graphs import load_graphs

        if isinstance(model, Model):
            self.check_graphs(load_graphs(model.path), target)

    def provenance(self, known: Provenance) -> Provenance:
        """What is known of the result, but for remarks, if this is known of the model before."""
        return known

    def foretold(self, model: Model | Planned) -> Model | Planned:
        return Planned(self.produces, self.provenance(model.provenance))

    def run(self, model: Model, ctx: Context) -> Model:
        return rewrite_in_a_row([self], model, ctx)[0]


@dataclass(frozen=True)
class Share:
    """The part of one pass in what several did together: how long it took, and its remarks. The first has the load in
    its time, the last the save."""

    seconds: float
    remarks: tuple[str, ...] = ()


def rewrite_in_a_row(passes: Sequence[GraphPass], model: Model, ctx: Context) -> tuple[Model, tuple[Share, ...]]:
    """Let passes rewrite the graphs of a model, one after the other, and write the result below ``ctx.scratch``.

    Graphs are read once and written once. What the passes after the first need of the graphs is checked when these
    are there; it was checked for the first one before.
    """
    from coldpress.models.onnx_graphs import external_files, load_graphs, save_graphs, settle

    times, remarks = [time.perf_counter()], list[tuple[str, ...]]()
    files, graphs = find_graphs(model.path), load_graphs(model.path)
    used = {file for graph in graphs.values() for file in external_files(graph)}
    known, provenance = {one.name: getattr(ctx, one.name) for one in fields(ctx)}, model.provenance
    for place, one in enumerate(passes):
        if place:
            for graph in graphs.values():
                settle(graph)
            one.check_graphs(graphs, ctx.target)
        said = list[str]()
        for name in graphs:
            made = one.rewrite(graphs[name], GraphContext(**known, name=name, file=files[name]))
            graphs[name] = made.graph
            said += [f"{name}: {remark}" for remark in made.remarks]
        provenance = one.provenance(provenance).remarked(*said)
        remarks.append(tuple(said))
        times.append(time.perf_counter())
    save_graphs(graphs, model.path, used, ctx.scratch)
    times[-1] = time.perf_counter()
    shares = [Share(after - before, said) for before, after, said in zip(times, times[1:], remarks, strict=False)]
    return Model(ctx.scratch, "onnx", "", provenance), tuple(shares)
