"""Several variants of a chat model in one folder, from which onnxruntime-genai takes the one for the device at hand.

The format is ONNX Runtime's model package: a manifest that names the variants, each a folder that is a model by itself
(https://github.com/microsoft/onnxruntime-genai/blob/main/docs/model_package.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.onnx_folder import read_genai_config
from coldpress.packaging.archive import Content, model_files

_RUN = '''\
"""Answers one question with the variant for the device at hand: python sample.py "What is machine learning?"."""

import json
import sys
from pathlib import Path

import onnxruntime_genai as og

folder = Path(__file__).parent
variants = json.loads((folder / "manifest.json").read_text())["components"]["model"]["variants"]
here = {"CUDAExecutionProvider": og.is_cuda_available, "DmlExecutionProvider": og.is_dml_available,
        "WebGpuExecutionProvider": og.is_webgpu_available, "OpenVINOExecutionProvider": og.is_openvino_available,
        "QNNExecutionProvider": og.is_qnn_available, "CPUExecutionProvider": lambda: True}
# in this order: what is faster where it is there at all comes before the CPU
name = next(name for ep, is_here in here.items() for name, one in variants.items() if one["ep"] == ep and is_here())

model = og.Model(str(folder / name))
tokenizer = og.Tokenizer(model)
chat = json.dumps([{"role": "user", "content": sys.argv[1] if len(sys.argv) > 1 else "What is machine learning?"}])
params = og.GeneratorParams(model)
params.set_search_options(max_length=512, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode(tokenizer.apply_chat_template(chat, add_generation_prompt=True)))
stream = tokenizer.create_stream()
print(f"[{name}]", file=sys.stderr)
while not generator.is_done():
    generator.generate_next_token()
    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
print()
'''


@dataclass(frozen=True)
class Variant:
    """A result, and what it was made for."""

    folder: Path
    provider: str
    device: str


def read_variant(output: Path) -> Variant:
    """A result by its output folder; ColdpressError for one that is no chat model, or whose report is missing."""
    folder = next((place for place in (output, output / "model") if read_genai_config(place)), None)
    if folder is None:
        raise ColdpressError(f"variants: '{output}' is no chat model: it has no genai_config.json")
    if not (output / "report.json").is_file():
        raise ColdpressError(f"variants: '{output}' has no report.json, which says what device it is for")
    target = json.loads((output / "report.json").read_text(encoding="utf-8")).get("target", {})
    return Variant(folder, target["provider"], target["device"])


def content(variants: Mapping[str, Variant]) -> Content:
    """What lies in the package, by name."""
    told: dict[str, Any] = {name: {"ep": one.provider, "device": one.device} for name, one in variants.items()}
    manifest = {"schema_version": "1.0", "components": {"model": {"variants": told}}}
    found: dict[str, Path | str] = {"manifest.json": json.dumps(manifest, indent=1), "sample.py": _RUN}
    for name, one in variants.items():
        found |= {f"{name}/{file}": content for file, content in model_files(one.folder, with_report=False).items()}
    return found
