"""Every rule looks at every graph of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.graphs.session import read_options
from coldpress.graphs.shapes import infer_shapes
from coldpress.models.model import Model, find_graphs
from coldpress.models.onnx_graphs import load_graph
from coldpress.parts import Finding
from coldpress.target import Target


@dataclass(frozen=True)
class Found:
    """A finding, with the rule that made it and the graph, by its name in the model's folder."""

    rule: str
    graph: str
    finding: Finding


def lint(model: Model, target: Target) -> Iterator[Found]:
    """What the rules find in an ONNX model for a target, graph by graph.

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
        for rule in parts.names("rules"):
            for finding in parts.find("rules", rule)().look(graph, target, options):
                yield Found(rule, name, finding)
