"""The process that builds and rewrites graphs: ``python -m coldpress.graphs.worker EXPORTER``, then the path of a
request on its stdin.

It runs apart from the process that moves weights, so that the memory of the libraries that build graphs is given back
before the first weight is read, and so that what it does to its imports (see ``deferred_torch``) stays its own. The
last line it prints is its answer as JSON. For mobius it imports transformers and onnx-ir before it is asked, so that it
can be started early.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.graphs.building import Built
from coldpress.graphs.capture.mobius import deferred_torch
from coldpress.graphs.forks import started
from coldpress.graphs.layout import write_layouts
from coldpress.models.checkpoint import Span, read_header
from coldpress.models.packed.spans import tensors_to_press
from coldpress.models.sentence_transformer import read_pooling
from coldpress.models.tokenizers.tokenizer import has_tokenizer, write_tokenizer

_LARGE_CONSTANT_BYTES = 1 << 16


def main(question: Path) -> dict[str, Any]:
    """Do a request: graphs, layouts and, for onnxruntime-genai, tokenizer and settings; what was learned of the
    model."""
    request = json.loads(question.read_text(encoding="utf-8"))
    folder, output = Path(request["folder"]), Path(request["output"])
    scratch = output / "capture"
    scratch.mkdir()
    with _tokenizer_beside(folder, scratch / "tokenizer", request) as tokenizer:
        captured = _build(folder, output, scratch, request)
        if tokenizer is not None and (output / "genai_config.json").exists():
            tokenizer()
            for file in (scratch / "tokenizer").iterdir():
                shutil.move(file, output / file.name)
    return asdict(_learned(captured))


@contextmanager
def _tokenizer_beside(folder: Path, place: Path, request: Mapping[str, Any]) -> Iterator[Callable[[], None] | None]:
    """What waits for the tokenizer for onnxruntime-genai, which a fork of this process writes to ``place`` while it
    builds the graph.

    None where there is none to write. Where there is no fork, a thread writes it. A model's own code is run by one
    process at a time, since transformers copies it to one place.
    """
    place.mkdir()
    if not request["genai"] or not has_tokenizer(folder):
        yield None
    elif request["trust_remote_code"]:
        yield partial(_write_tokenizer, folder, place, True)
    else:
        with started(1) as other:
            yield other.submit(_write_tokenizer, folder, place, False).result


def _write_tokenizer(folder: Path, place: Path, trust_remote_code: bool) -> None:
    deferred_torch.defer()  # a tokenizer's own code may want it
    write_tokenizer(folder, place, trust_remote_code)


def _build(folder: Path, output: Path, scratch: Path, request: Mapping[str, Any]) -> Any:
    """The captured graphs, written to ``output`` with their layouts and the settings of onnxruntime-genai."""
    from coldpress.graphs.capture.captured import Request
    from coldpress.graphs.capture.exporters import capture
    from coldpress.graphs.encode import Precision, encode
    from coldpress.graphs.fuse_linears import join_siblings, part_strangers
    from coldpress.graphs.genai import write_genai_config
    from coldpress.graphs.lora_slots import add_slots
    from coldpress.graphs.opset import lower_opset
    from coldpress.graphs.pooling import add_pooling, has_tokens
    from coldpress.graphs.positions import give_hidden_states, last_position_only, positions_of_short_steps

    wanted = Request(
        folder, request["provider"], request["dtype"], scratch, trust_remote_code=request["trust_remote_code"]
    )
    captured = capture(request["exporter"], wanted)
    for model in captured.components.values():
        part_strangers(model.graph, captured.sources)
        join_siblings(model.graph, captured.sources)
    precision = Precision.from_json(request["precision"])
    vocabulary = int(getattr(captured.config, "vocab_size", 0) or 0)
    _require_matches(captured, precision, vocabulary)
    pooling = read_pooling(folder)
    if pooling is not None and has_tokens(captured.components.get("model")):
        add_pooling(captured.components["model"], pooling)
    layouts = []
    for name, model in captured.components.items():
        _prefer_checkpoint(model, captured.sources)
        sources = {**captured.sources, **_large_constants(model, scratch / f"{name}_constants.safetensors")}
        _require_all(model, sources)
        slots = _slots(captured, model, sources, request)
        file = request.get("filename", f"{name}.onnx") if name == "model" else f"{name}.onnx"
        layouts.append(encode(model, sources, precision, file, vocabulary))
        if request.get("hidden_states") and (head := _head_name(model, captured.sources)):
            give_hidden_states(model.graph, head)
        pick = {"last": last_position_only, "speculation": positions_of_short_steps}.get(request["logits"])
        if pick and (head := _head_name(model, captured.sources)):
            pick(model.graph, head)
        if slots:
            add_slots(model, slots)
        lower_opset(model)
        _save(model, output / file)
    write_layouts(layouts, output / "layouts.json")
    if request["genai"]:
        write_genai_config(captured, folder, output, request)
    return captured


def _require_matches(captured: Any, precision: Any, vocabulary: int) -> None:
    """Refuse a glob over modules that matches none, as what was to stay float would be pressed in silence."""
    from coldpress.graphs.encode import unmatched_overrides

    for pattern in unmatched_overrides(captured.components.values(), captured.sources, precision, vocabulary):
        raise ColdpressError(
            f"modules_to_not_convert: '{pattern}' matches no module of this model",
            hint="it is a glob over whole names, such as '*.v_proj' or 'lm_head'",
        )


def _slots(captured: Any, model: Any, sources: Mapping[str, Span], request: Mapping[str, Any]) -> dict[str, Any]:
    """The slots that the request asks for, by the names that products get when the graph is encoded."""
    from coldpress.graphs.lora_slots import find_slots

    if not request.get("slots"):
        return {}
    if len(captured.components) > 1:
        raise ColdpressError(
            f"this model has the parts {', '.join(captured.components)}; adapters are for models of one graph",
            hint="merge the adapter into its base (pass merge_adapter_weights) and press the merged model",
        )
    return find_slots(model.graph, sources, tensors_to_press(Path(request["folder"]))[0], request["slots"])


def _head_name(model: Any, sources: Mapping[str, Span]) -> str | None:
    for output in model.graph.outputs:
        node = output.producer() if output.name == "logits" else None
        while node is not None and node.op_type not in ("MatMul", "MatMulNBits"):
            values = [value for value in node.inputs if value is not None and value.producer() is not None]
            node = values[0].producer() if values else None
        if node is not None:
            return node.name
    return None


def _prefer_checkpoint(model: Any, sources: Mapping[str, Span]) -> None:
    """Forget the values that the builder gave to weights of the checkpoint (zeros for ViT's class token, for one)."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and name in sources:
            value.const_value = None


def _large_constants(model: Any, file: Path) -> dict[str, Span]:
    """Move tables that the builder computed (rotary caches) to a file, from where they go into the data file."""
    import numpy as np
    from safetensors.numpy import save_file

    arrays = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.nbytes > _LARGE_CONSTANT_BYTES:
            array = value.const_value.numpy()
            arrays[name] = array if array.dtype == np.int64 else array.astype(np.float32)
            value.const_value = None
    if not arrays:
        return {}
    save_file(arrays, file)
    return read_header(file)


def _require_all(model: Any, sources: Mapping[str, Span]) -> None:
    for name, value in model.graph.initializers.items():
        if value.const_value is None and name not in sources and value.uses():
            raise ColdpressError(
                f"the checkpoint has no tensor for '{name}'", hint="is config.json that of these weights?"
            )
        if value.const_value is None and name in sources:
            wanted, got = [int(size) for size in value.shape], list(sources[name].shape)
            if wanted != got:
                raise ColdpressError(
                    f"tensor '{name}' has shape {got}, config.json asks for {wanted}",
                    hint="is config.json that of these weights?",
                )


def _save(model: Any, file: Path) -> None:
    import onnx_ir as ir

    for node in model.graph:
        node.metadata_props.clear()
    model.metadata_props["producer"] = "coldpress"
    model.graph.name = file.stem  # mobius names a graph by the folder it was read from
    ir.save(model, file)


def _learned(captured: Any) -> Built:
    architecture = (captured.hf_config.get("architectures") or [captured.hf_config.get("model_type")])[0]
    return Built(architecture, tuple(captured.warnings))


def _import_transformers() -> None:
    """Import it, without torch.

    What its model files define it reads twice, for itself and for its package of models: here once.
    """
    deferred_torch.hide()
    from transformers.utils import import_utils

    known: Any = import_utils
    read = known.create_import_structure_from_path
    known.create_import_structure_from_path = lambda path: read(Path(path).parent if Path(path).is_file() else path)


if __name__ == "__main__":
    gc.disable()  # it lives for seconds, and most of what it makes is kept
    with suppress(ImportError):  # said where it is needed
        if sys.argv[1:] == ["mobius"]:
            _import_transformers()
            import coldpress.graphs.capture.mobius.capture  # noqa: F401  with onnx-ir
    if asked := sys.stdin.readline().strip():
        try:
            result = main(Path(asked))
        except ColdpressError as error:
            result = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print(json.dumps(result))
        sys.stdout.flush()
    os._exit(0)  # skips tearing down a few hundred modules
