"""What a press will cost, said before any work: seconds, memory, disk and the size of the result.

Only the configuration is read, and the headers of the weights where they are at hand. Sizes are computed, within a
percent; times come from rates measured on two cores with AVX512 and are good to a factor of two.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coldpress import recipes
from coldpress.errors import ColdpressError
from coldpress.model import Model
from coldpress.passes.press import Press
from coldpress.sources import find_model, hub_config
from coldpress.target import Target
from coldpress.workflow import Workflow

_CAPTURE_S, _CAPTURE_BYTES = 2.0, 130_000_000
_WEIGHTS_PER_SECOND_AND_THREAD = {"rtn": 120e6, "kquant": 30e6}
_CHUNK_BYTES = 24_000_000  # float32 rows and the quantizer's temporaries, for each thread
_VERIFY_TOKENS, _VERIFY_FLOPS_PER_SECOND, _VERIFY_START_S = 2200, 60e9, 8.0
_VERIFY_BYTES = 700_000_000  # torch, transformers and a chunk of logits


@dataclass(frozen=True)
class Shape:
    """How many weights a model has, and where: in linear layers, token embeddings and the head."""

    linear: int
    embedding: int
    tied: bool
    hidden: int

    @property
    def total(self) -> int:
        return self.linear + self.embedding * (1 if self.tied else 2)


@dataclass(frozen=True)
class Plan:
    """The prediction for one workflow; bytes and seconds."""

    model: str
    weights: int
    steps: list[str]
    output_bytes: int
    disk_bytes: int
    free_disk_bytes: int
    peak_memory_bytes: int
    capture_s: float
    press_s: float
    verify_s: float

    @property
    def seconds(self) -> float:
        return self.capture_s + self.press_s + self.verify_s


def plan(workflow: Workflow, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Predict what ``workflow`` costs. Raises ColdpressError for whatever the run itself would refuse.

    Of a model on the hub only config.json is fetched.
    """
    config = hub_config(workflow.model)
    if config is not None:
        model, shape = Model(Path(workflow.model), "hf", ""), shape_from_config(config)
    else:
        model = find_model(workflow.model, trust_remote_code=workflow.trust_remote_code, say=say)
        shape = shape_of(model)
    steps = recipes.complete(workflow, model)
    press = next((made for step in steps if isinstance(made := step.make(), Press)), None)
    if press is None:
        raise ColdpressError("only workflows with the pass 'press' can be planned")
    press.check(model, workflow.target)
    planned = _predict(workflow, shape, press)
    planned["steps"] = [step.type for step in steps] + (["verify"] if workflow.verify.enabled else [])
    planned["disk_bytes"] += 4 * shape.total if model.format == "gguf" else 0  # it is unpacked to float32
    return planned


def _predict(workflow: Workflow, shape: Shape, press: Press) -> dict[str, Any]:
    output, threads = output_bytes(shape, press, workflow.target), workflow.target.thread_count
    memory, verify_s = [_CAPTURE_BYTES, 60_000_000 + threads * _CHUNK_BYTES], 0.0
    if workflow.verify.enabled:
        verify_s = _VERIFY_START_S + 2 * shape.total * _VERIFY_TOKENS / _VERIFY_FLOPS_PER_SECOND
        memory.append(_VERIFY_BYTES + 4 * shape.embedding + output)
    planned = Plan(
        model=workflow.model,
        weights=shape.total,
        steps=[],
        output_bytes=output,
        disk_bytes=output,
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        peak_memory_bytes=max(memory),
        capture_s=_CAPTURE_S,
        press_s=shape.total / (_WEIGHTS_PER_SECOND_AND_THREAD[press.algorithm] * threads),
        verify_s=verify_s,
    )
    return {**asdict(planned), "seconds": planned.seconds}


def shape_from_config(config: dict[str, Any]) -> Shape:
    """Count a decoder's weights from its configuration alone; biases and norms are left out.

    Layers are taken as attention with (grouped) query, key, value and output, and a gated MLP; for others, and for
    mixtures of experts, this is a guess.
    """
    config = {**config, **config.get("text_config", {})}
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    keys = int(config.get("num_key_value_heads") or heads)
    experts = int(config.get("num_experts") or config.get("num_local_experts") or 1)
    wide = int(config.get("moe_intermediate_size") or config["intermediate_size"])
    layer = 2 * hidden * head * (heads + keys) + 3 * hidden * wide * experts
    tied = bool(config.get("tie_word_embeddings", False))
    return Shape(layers * layer, int(config["vocab_size"]) * hidden, tied, hidden)


def shape_of(model: Model) -> Shape:
    """Count a model's weights from its headers (or, for a GGUF file, from its tensor table)."""
    sizes = _tensor_shapes(model)
    config = _config(model)
    vocabulary, hidden = int(config.get("vocab_size", 0)), int(config.get("hidden_size") or config.get("d_model") or 0)
    matrices = {name: shape for name, shape in sizes.items() if len(shape) == 2}
    tables = [shape for shape in matrices.values() if vocabulary and shape[0] >= vocabulary]
    embedding = math.prod(tables[0]) if tables else vocabulary * hidden
    linear = sum(math.prod(shape) for shape in matrices.values()) - sum(math.prod(shape) for shape in tables)
    return Shape(linear, embedding, tied=len(tables) < 2, hidden=hidden)


def output_bytes(shape: Shape, press: Press, target: Target) -> int:
    """The bytes of graph and weights that ``press`` writes for a model of this shape."""
    request = press.request(target)["precision"]
    width = {"float32": 4, "float16": 2, "bfloat16": 2}[request["dtype"]]

    def bytes_of(weights: int, encoding: dict[str, Any] | None) -> float:
        if encoding is None:
            return weights * width
        zero_bits = 0 if encoding["symmetric"] else encoding["bits"]
        return weights * (encoding["bits"] + (8 * width + zero_bits) / encoding["block_size"]) / 8

    total = bytes_of(shape.linear, request["linear"]) + bytes_of(shape.embedding, request["head"])
    if not shape.tied:
        total += bytes_of(shape.embedding, request["embedding"])
    return int(total) + 3_000_000  # the graph, norms and rotary tables


def table(planned: dict[str, Any]) -> Any:
    """The plan as a table for the terminal."""
    from rich.table import Table

    shown = Table(
        title=f"plan for {planned['model']}", title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    enough = "" if planned["free_disk_bytes"] > planned["disk_bytes"] else "  (not enough)"
    for name, value in (
        ("steps", " -> ".join(planned["steps"])),
        ("weights", f"{planned['weights'] / 1e6:,.0f} million"),
        ("output", f"{planned['output_bytes'] / 1e6:,.0f} MB"),
        (
            "disk needed",
            f"{planned['disk_bytes'] / 1e6:,.0f} MB of {planned['free_disk_bytes'] / 1e6:,.0f} MB free{enough}",
        ),
        ("peak memory", f"about {planned['peak_memory_bytes'] / 1e6:,.0f} MB"),
        (
            "time",
            f"about {planned['seconds']:.0f} s (capture {planned['capture_s']:.0f}, press {planned['press_s']:.0f}, "
            f"verify {planned['verify_s']:.0f})",
        ),
    ):
        shown.add_row(name, value)
    return shown


def _tensor_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    if model.format == "gguf":
        from gguf import GGUFReader

        return {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in GGUFReader(model.path).tensors}
    from coldpress.networks.checkpoint import Checkpoint

    return {name: span.shape for name, span in Checkpoint(model.path).tensors.items()}


def _config(model: Model) -> dict[str, Any]:
    if model.format == "gguf":
        shapes = _tensor_shapes(model)
        rows, hidden = shapes.get("token_embd.weight", (0, 0))
        return {"vocab_size": rows, "hidden_size": hidden}
    config: dict[str, Any] = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    return {**config, **config.get("text_config", {})}
