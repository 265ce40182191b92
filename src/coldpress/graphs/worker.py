"""The process that builds and rewrites graphs: ``python -m coldpress.graphs.worker REQUEST.json``.

It runs apart from the process that moves weights, so that the memory of the libraries that build graphs is given back
before the first weight is read, and so that what it does to its imports (see ``deferred_torch``) stays its own.
The last line it prints is its answer as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress import environment
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.layout import Layout, read_layouts, write_layouts
from coldpress.models.checkpoint import Checkpoint, Span, read_header
from coldpress.models.packed import tensors_to_press
from coldpress.models.tokenizers.tokenizer import has_tokenizer, write_tokenizer

_LARGE_CONSTANT_BYTES = 1 << 16


def build_graph(folder: Path, output: Path, request: Mapping[str, Any]) -> tuple[list[Layout], dict[str, Any]]:
    """Run the worker; returns the layouts of the graphs written to ``output`` and what is worth noting of the model.

    ``request``: ``provider``, ``dtype``, ``precision``, ``logits``, ``genai``, ``trust_remote_code``, and ``slots``: the modules
    of the checkpoint that adapters change.
    """
    Checkpoint(folder).tensors  # noqa: B018  a broken checkpoint is said here, before a process starts
    question = output / "request.json"
    question.write_text(json.dumps({"folder": str(folder), "output": str(output), **request}), encoding="utf-8")
    command = [sys.executable, "-m", "coldpress.graphs.worker", str(question)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment.of_child(), check=False)
    question.unlink()
    answer = _answer(done)
    if "error" in answer:
        raise ColdpressError(answer["error"], hint=answer["hint"], exit_code=answer["exit_code"])
    layouts = read_layouts(output / "layouts.json")
    (output / "layouts.json").unlink()
    return layouts, answer


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        said = _last_words(done.stderr) or f"exit code {done.returncode}"
        raise ColdpressError(
            f"building the graph failed: {said}",
            hint="is config.json complete, and that of these weights?",
            exit_code=WORK_FAILED,
        ) from None


def _last_words(errors: str) -> str:
    """The message of the exception that ended a process, in one line; else the last line it wrote."""
    lines = errors.strip().splitlines()
    begins = next((place for place in range(len(lines) - 1, -1, -1) if lines[place].startswith("Traceback ")), None)
    if begins is None:
        return lines[-1] if lines else ""
    message = next(place for place in range(begins + 1, len(lines)) if not lines[place].startswith(" "))
    return " ".join(line.strip() for line in lines[message:])


def main(question: Path) -> dict[str, Any]:
    from coldpress.graphs.capture import capture
    from coldpress.graphs.encode import Precision, encode
    from coldpress.graphs.fuse_linears import join_siblings, part_strangers
    from coldpress.graphs.genai import write_genai_config
    from coldpress.graphs.lora_slots import add_slots
    from coldpress.graphs.opset import lower_opset
    from coldpress.graphs.positions import last_position_only, positions_of_short_steps

    request = json.loads(question.read_text(encoding="utf-8"))
    folder, output = Path(request["folder"]), Path(request["output"])
    scratch = output / "capture"
    scratch.mkdir()
    captured = capture(
        folder,
        provider=request["provider"],
        dtype={"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[request["dtype"]],
        scratch=scratch,
        trust_remote_code=request["trust_remote_code"],
    )
    for model in captured.components.values():
        part_strangers(model.graph, captured.sources)
        join_siblings(model.graph, captured.sources)
    precision = Precision.from_json(request["precision"])
    vocabulary = int(getattr(captured.config, "vocab_size", 0) or 0)
    _require_matches(captured, precision, vocabulary)
    layouts = []
    for name, model in captured.components.items():
        _prefer_checkpoint(model, captured.sources)
        sources = {**captured.sources, **_large_constants(model, scratch / f"{name}_constants.safetensors")}
        _require_all(model, sources)
        slots = _slots(captured, model, sources, request)
        layouts.append(encode(model, sources, precision, f"{name}.onnx", vocabulary))
        pick = {"last": last_position_only, "speculation": positions_of_short_steps}.get(request["logits"])
        if pick and (head := _head_name(model, captured.sources)):
            pick(model.graph, head)
        if slots:
            add_slots(model, slots)
        lower_opset(model)
        _save(model, output / f"{name}.onnx")
    write_layouts(layouts, output / "layouts.json")
    if request["genai"]:
        write_genai_config(captured, folder, output, request["provider"], request["logits"] == "speculation")
    if (output / "genai_config.json").exists() and has_tokenizer(folder):
        write_tokenizer(folder, output, request["trust_remote_code"])
    return _notes(captured)


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


def _notes(captured: Any) -> dict[str, Any]:
    decoder = captured.components.get("model")
    names = {value.name for value in (*decoder.graph.inputs, *decoder.graph.outputs)} if decoder is not None else set()
    return {
        "architecture": (captured.hf_config.get("architectures") or [captured.hf_config.get("model_type")])[0],
        "components": list(captured.components),
        "warnings": captured.warnings,
        "generates": {"input_ids", "past_key_values.0.key", "logits"} <= names,
    }


if __name__ == "__main__":
    try:
        result = main(Path(sys.argv[1]))
    except ColdpressError as error:
        result = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # skips tearing down a few hundred modules
