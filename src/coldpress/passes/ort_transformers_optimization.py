"""Fuse the patterns of transformers into the operators that ONNX Runtime has kernels for: attention, layer norms, GELU.

ONNX Runtime's own optimizer for graphs that came from an exporter. A graph that coldpress captured is fused already: it
stays as it is, which the report says. The weights are in memory as a whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.imported.tools import blaming, quiet, working_copy
from coldpress.models.model import Model
from coldpress.models.onnx_graphs import load_graph, rewrite_graphs, save_graph
from coldpress.models.planned import Planned
from coldpress.parts import Closeness, Context, Pass, option
from coldpress.target import Target

#: the optimizer for each kind of model in a config.json
_KINDS = {
    "distilbert": "bert",
    "roberta": "bert",
    "xlm-roberta": "bert",
    "electra": "bert",
    "albert": "bert",
    "mpnet": "bert",
    "whisper": "bart",
    "mbart": "bart",
    "mt5": "t5",
    "deit": "vit",
    "phi3": "phi",
}
_FUSED = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "SkipLayerNormalization",
          "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "BiasGelu", "FastGelu")  # fmt: skip
_LARGE_BYTES = 1 << 30


@dataclass(frozen=True)
class OrtTransformersOptimization(Pass):
    """Fuse the patterns of transformers into the operators that ONNX Runtime has kernels for."""

    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    version: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    model_type: str | None = option("which patterns to look for; default: by config.json, else bert", None)
    num_heads: int = option("attention heads; 0: by config.json or the graph", 0)
    hidden_size: int = option("width of the hidden states; 0: by config.json or the graph", 0)
    opt_level: int | None = option(
        "ONNX Runtime's own optimizations before: none, basic, extended, all", None, (0, 1, 2, 99)
    )
    only_onnxruntime: bool = option("only those, without looking for patterns", False)
    optimization_options: dict[str, bool] = option("fusions switched on or off, such as enable_gelu", dict)

    @property
    def closeness(self) -> Closeness:
        is_approximate = self.optimization_options.get("enable_gelu_approximation", False)
        return Closeness(
            1e-2 if is_approximate else 1e-3, "fused operators sum in another order, and some approximate GELU"
        )

    def check(self, model: Model | Planned, target: Target) -> None:
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import MODEL_TYPES

        if self.model_type is not None and self.model_type not in MODEL_TYPES:
            raise ColdpressError(
                f"unknown model_type '{self.model_type}'", hint=did_you_mean(self.model_type, MODEL_TYPES)
            )
        known = [name for name, value in vars(FusionOptions("bert")).items() if isinstance(value, bool)]
        for name in self.optimization_options:
            if name not in known:
                raise ColdpressError(f"optimization_options: there is no '{name}'", hint=did_you_mean(name, known))
        if self.only_onnxruntime and not self.opt_level:
            raise ColdpressError("only_onnxruntime does nothing without an opt_level", hint="use --opt_level 1")

    def run(self, model: Model, ctx: Context) -> Model:
        facts = _facts(model.path)
        remarks: list[str] = []

        def change(file: Path, target: Path) -> None:
            ctx.progress(f"fusing {file.name}", 0, 1)
            before = _fused(load_graph(file))
            with working_copy(file, ctx.scratch) as copy, quiet(), blaming("ONNX Runtime's optimizer", file.name):
                optimized = self._optimized(copy, facts, ctx.target)
                is_large = sum(one.stat().st_size for one in copy.parent.iterdir()) >= _LARGE_BYTES
                optimized.save_model_to_file(str(target), use_external_data_format=is_large)
            after = _fused(load_graph(target))
            if after == before and not self.only_onnxruntime:
                for one in target.parent.glob(f"{target.name}*"):
                    one.unlink()
                save_graph(load_graph(file), target)
            remarks.append(_said(target.name, before, after))

        rewrite_graphs(model.path, ctx.scratch, change)
        return Model(ctx.scratch, "onnx", "", model.provenance.remarked(*remarks))

    def _optimized(self, copy: Path, facts: dict[str, Any], target: Target) -> Any:
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        kind = self.model_type or _kind(facts)
        options = FusionOptions(kind)
        for name, value in self.optimization_options.items():
            setattr(options, name, value)
        return optimize_model(
            str(copy),
            model_type=kind,
            num_heads=self.num_heads or facts.get("num_attention_heads", 0),
            hidden_size=self.hidden_size or facts.get("hidden_size", 0),
            optimization_options=options,
            opt_level=self.opt_level,
            use_gpu=target.device == "gpu",
            only_onnxruntime=self.only_onnxruntime,
        )


def _facts(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return facts


def _kind(facts: dict[str, Any]) -> str:
    from onnxruntime.transformers.optimizer import MODEL_TYPES

    name = str(facts.get("model_type", "bert"))
    kind = _KINDS.get(name, name)
    return kind if kind in MODEL_TYPES else "bert"


def _fused(model: Any) -> dict[str, int]:
    """How many of the fused operators a graph has."""
    counts: dict[str, int] = {}
    for node in model.graph:
        if node.op_type in _FUSED and node.domain == "com.microsoft":
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _said(name: str, before: dict[str, int], after: dict[str, int]) -> str:
    made = {kind: count - before.get(kind, 0) for kind, count in after.items() if count > before.get(kind, 0)}
    if made:
        return f"{name}: fused {', '.join(f'{count} {kind}' for kind, count in made.items())}"
    if before:
        return f"{name}: nothing left to fuse, it has {', '.join(f'{count} {kind}' for kind, count in before.items())}"
    return f"{name}: nothing was fused, as no pattern of this kind of model was found"
