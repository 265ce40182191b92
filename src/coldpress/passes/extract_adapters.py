"""Take the LoRA weights of an ONNX model out: they become optional inputs of rank 0, and an adapter file that fills
them.

For models that an exporter wrote with their adapter in them, such as PEFT's through ``torch.onnx.export``. A scaling
behind the products stays where it is. Without the file the model is the base alone. One that has LoRA slots already
stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Context, Pass, option
from coldpress.target import Target


@dataclass(frozen=True)
class ExtractAdapters(Pass):
    accepts = ("onnx",)
    needs = ("onnxruntime",)
    version = 2

    adapter_type: str = option(
        "kind of the adapter in the model; others than lora are no plain products", "lora", ("lora",)
    )
    make_inputs: bool = option("make the weights inputs of the graph; without that they could not be exchanged", True)
    dynamic_lora_r: bool = option("leave the rank open, so that adapters of other ranks fit", True)
    optional_inputs: bool = option("inputs that may be left out, which is the base alone", True)
    save_format: str = option("form of the file", "onnx_adapter", ("onnx_adapter",))

    def check(self, model: Model | Planned, target: Target) -> None:
        for name in ("make_inputs", "dynamic_lora_r", "optional_inputs"):
            if not getattr(self, name):
                raise ColdpressError(
                    f"{name}: false would write a model that needs one adapter of one rank", hint="leave it out"
                )

    def run(self, model: Model, ctx: Context) -> Model:
        from coldpress.graphs import adapter_file
        from coldpress.graphs.imported.inner_lora import take_out
        from coldpress.graphs.lora_metadata import read_slots
        from coldpress.models.onnx_folder import graph_file
        from coldpress.models.onnx_graphs import copy_model, load_graph, rewrite_graphs, save_graph

        main = graph_file(model.path)

        def change(file: Path, target: Path) -> None:
            graph = load_graph(file)
            if file == main:
                adapter_file.write(adapter_file.beside(target.parent, "", 1), take_out(graph, str(file)))
            save_graph(graph, target)

        if read_slots(main):
            copy_model(model.path, ctx.scratch)
        else:
            rewrite_graphs(model.path, ctx.scratch, change)
        return Model(ctx.scratch, "onnx", "", model.provenance)
