"""Turn a GGUF file into a Hugging Face folder.

The values of the quantized tensors are written out exactly, so nothing is lost; what the quantization had cost is not
undone. Networks: llama (also Mistral and SmolLM2), Qwen 2 and 3, Gemma 2 and 3, Phi-3, SmolLM3, Granite, OLMo 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Context, Pass
from coldpress.target import Target


@dataclass(frozen=True)
class UnpackGguf(Pass):
    """Turn a GGUF file into a Hugging Face folder."""

    accepts: ClassVar[tuple[str, ...]] = ("gguf",)
    produces: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("gguf",)

    def check(self, model: Model | Planned, target: Target) -> None:
        from coldpress.models.gguf.file import read_gguf
        from coldpress.models.gguf.tokenizer import special_tokens
        from coldpress.models.gguf.unpack import tensor_names
        from coldpress.models.tokenizers.chat_template import ChatTemplate

        if isinstance(model, Planned):
            return
        gguf = read_gguf(model.path)
        tensor_names(gguf)
        if template := gguf.metadata.get("tokenizer.chat_template"):
            ChatTemplate(template, special_tokens(gguf), str(model.path)).check()

    def run(self, model: Model, ctx: Context) -> Model:
        from coldpress.models.gguf.file import read_gguf
        from coldpress.models.gguf.unpack import unpack

        file, known = read_gguf(model.path), model.provenance
        remarks = unpack(file, ctx.scratch, ctx.progress)
        source = replace(known.source, architecture=file.architecture, gguf_types=file.kinds(), lattice=file.lattice)
        return Model(ctx.scratch, "hf", "", replace(known, source=source).remarked(*remarks))
