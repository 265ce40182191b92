"""How ONNX Runtime shall open a model: optimization of the graph, threads, execution mode, options of its provider.

They are written beside the graph, in ``session_options.json``, which coldpress's own metrics follow, and into the
``genai_config.json`` of a chat model, which onnxruntime-genai follows. The graph itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from coldpress.errors import ColdpressError
from coldpress.graphs.imported.options import LEVELS, MODES, write_options
from coldpress.models.model import Model, find_graphs
from coldpress.models.onnx_graphs import load_graph
from coldpress.models.planned import Planned
from coldpress.models.provenance import SessionChoice, TriedOptions
from coldpress.parts import SAME, Closeness, Context, Pass, option
from coldpress.rules.int8_products import Int8Products
from coldpress.target import Target


@dataclass(frozen=True)
class SessionOptions(Pass):
    """How ONNX Runtime shall open a model: optimization of the graph, threads, execution mode."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    graph_optimization_level: str | None = option("how far the graph is optimized when it is opened", None, LEVELS)
    intra_op_num_threads: int | None = option("threads inside an operator; 0: one for each core", None)
    inter_op_num_threads: int | None = option("threads for operators beside each other, in the parallel mode", None)
    execution_mode: str | None = option("one operator after the other, or branches beside each other", None, MODES)
    config_entries: dict[str, str] = option("further entries of the session's configuration", dict)
    provider_options: dict[str, str] = option("options of the target's execution provider, by its own names", dict)

    @property
    def closeness(self) -> Closeness:
        return closeness_of(self.provider_options)

    def check(self, model: Model | Planned, target: Target) -> None:
        if not self.options and not self.provider_options:
            raise ColdpressError("no option of the session is set", hint="set intra_op_num_threads, for instance")
        for name in ("intra_op_num_threads", "inter_op_num_threads"):
            if (getattr(self, name) or 0) < 0:
                raise ColdpressError(f"{name}: {getattr(self, name)} is below zero", hint="0 means one for each core")
        if self.inter_op_num_threads is not None and self.execution_mode == "sequential":
            raise ColdpressError(
                "inter_op_num_threads has no effect in the sequential mode",
                hint="leave it out, or set execution_mode parallel",
            )

    def run(self, model: Model, ctx: Context) -> Model:
        own = {"provider_options": {ctx.target.provider: self.provider_options}} if self.provider_options else {}
        return with_options(model, ctx, {**self.options, **own})

    @property
    def options(self) -> dict[str, Any]:
        """What is set."""
        names = ("graph_optimization_level", "intra_op_num_threads", "inter_op_num_threads", "execution_mode")
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {**found, **({"config_entries": self.config_entries} if self.config_entries else {})}


def closeness_of(options: Mapping[str, str]) -> Closeness:
    """How near a model must stay with options of its provider, some of which let it compute in fewer bits."""
    rounds = [name for name, value in options.items() if "fp16" in name and value.lower() in ("1", "true")]
    return Closeness(0.03, f"{rounds[0]} lets the provider compute in float16") if rounds else SAME


def with_options(model: Model, ctx: Context, options: dict[str, Any], tried: tuple[TriedOptions, ...] = ()) -> Model:
    """The model with session options beside it, chosen among those ``tried``, and remarks on what is slow with them."""
    merged, remarks = write_options(model.path, ctx.scratch, options)
    for name, file in find_graphs(model.path).items():
        found = Int8Products().look(load_graph(file), ctx.target, merged)
        remarks += [f"{name}: {finding.problem}" for finding in found]
    provenance = replace(model.provenance, session=SessionChoice(merged, tried))
    return Model(ctx.scratch, "onnx", "", provenance.remarked(*remarks))
