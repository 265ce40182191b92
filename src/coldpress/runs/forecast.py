"""What a press will cost, said before any work: seconds, memory, disk and the size of the result.

Only the configuration is read, and the headers of the weights where they are at hand. What is quantized already keeps
its codes and counts with their bits. Sizes are computed, within a percent; times come from rates measured on two cores
with AVX512 and are good to a factor of two.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.graphs.kernels import Encoding
from coldpress.graphs.prequantized import readable_encoding, stored_scale_dtype
from coldpress.models import adapter_folder
from coldpress.models.checkpoint import Span
from coldpress.models.model import MODULES, Model
from coldpress.models.packed.folder import usual_grid
from coldpress.models.packed.spans import tensors_to_press
from coldpress.models.planned import Planned
from coldpress.models.sources import find_model, hub_config
from coldpress.parts import DataSource
from coldpress.passes.press import AS_STORED, Press
from coldpress.passes.quantize import Quantize
from coldpress.runs.verification import check_request
from coldpress.target import Target
from coldpress.workflow import Step, Workflow, recipes
from coldpress.workflow.calibration_data import AS_NEEDED

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_CAPTURE_S, _CAPTURE_BYTES = 2.0, 130_000_000
_WEIGHTS_PER_SECOND_AND_THREAD = {"rtn": 120e6, "kquant": 30e6, AS_STORED: 120e6}
#: importing torch and the model's code; tokens times weights, and then weights times inputs, of a calibration
_CALIBRATE_START_S, _CALIBRATE_FLOPS_PER_SECOND_AND_THREAD = 5.0, 60e9
_CALIBRATE_BYTES = 400_000_000
#: algorithm -> the share of the divergence of rounding to nearest that was left on two small models and two texts
_LOSSES = {"rtn": (1.0, 1.0), "kquant": (0.77, 0.91), "gptq": (0.2, 0.45), "best": (0.18, 0.36)}
_FINEST = "best"
_CHUNK_BYTES = 24_000_000  # float32 rows and the quantizer's temporaries, for each thread
#: how the names of heads end that are not tied to the embedding
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_VERIFY_TOKENS, _VERIFY_FLOPS_PER_SECOND, _VERIFY_START_S = 2200, 60e9, 8.0
_VERIFY_BYTES = 700_000_000  # torch, transformers and a chunk of logits


@dataclass(frozen=True)
class Stored:
    """So many weights of one role that a checkpoint holds as codes."""

    role: str
    weights: int
    encoding: Encoding
    scale_dtype: str = "float16"


@dataclass(frozen=True)
class Shape:
    """How many weights a model has, and where: in linear layers, token embeddings and the head.

    ``stored``: those that the checkpoint holds as codes. A tied embedding is the head. ``widest``: the most inputs of a
    layer.
    """

    linear: int
    embedding: int
    tied: bool
    hidden: int
    stored: tuple[Stored, ...] = ()
    widest: int = 0

    @property
    def roles(self) -> dict[str, int]:
        """The weights of each role."""
        return {"linear": self.linear, "head": self.embedding, "embedding": 0 if self.tied else self.embedding}

    @property
    def total(self) -> int:
        return sum(self.roles.values())

    @property
    def total_stored(self) -> int:
        return sum(one.weights for one in self.stored)


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
    calibrate_s: float
    capture_s: float
    press_s: float
    verify_s: float

    @property
    def seconds(self) -> float:
        return self.calibrate_s + self.capture_s + self.press_s + self.verify_s


def plan(workflow: Workflow, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Predict what ``workflow`` costs. Raises ColdpressError for whatever the run itself would refuse.

    Of a model on the hub only config.json is fetched.
    """
    config = hub_config(workflow.model)
    if config is not None:
        model: Model | Planned = Planned("hf")
        shape = shape_from_config(config)
    else:
        model = found = find_model(workflow.model, trust_remote_code=workflow.trust_remote_code, say=say)
        if found.format in ("onnx", *MODULES):
            what = "an ONNX model already" if found.format == "onnx" else "a module"
            raise ColdpressError(
                f"{workflow.model} is {what}; only presses of Hugging Face and GGUF models are foretold",
                hint="run it without a plan, or plan the model that it was made from",
            )
        shape = shape_of(replace(found, path=adapter_folder.base_of(found.path)))
    steps = tuple(step for step in recipes.complete(workflow, model) if not _passed_over(step, shape))
    press = next((made for step in steps if isinstance(made := step.make(), Press)), None)
    if press is None:
        raise ColdpressError("only workflows with the pass 'press' can be planned")
    check_request(workflow.verify, model)
    current = model
    for step in steps:
        made = step.make()
        if step.type in ("attach_adapters", "press"):
            made.check(current, workflow.target)
        current = made.foretold(current)
    quantize = next((made for step in steps if isinstance(made := step.make(), Quantize)), None)
    planned = _predict(workflow, shape, press, quantize)
    measured = quantize is not None and quantize.head_bits == 0 and not shape.total_stored
    small = output_bytes(shape, replace(press, head_bits=4), workflow.target) if measured else None
    planned["output_bytes_with_small_head"] = small
    planned["algorithms"] = _alternatives(workflow, shape, planned, quantize) if press.precision == "int4" else {}
    planned["steps"] = [step.type for step in steps] + (["verify"] if workflow.verify.enabled else [])
    planned["disk_bytes"] += 4 * shape.total if model.format == "gguf" else 0  # it is unpacked to float32
    return planned


def better(workflow: Workflow, report: Mapping[str, Any]) -> str | None:
    """What would leave less of a result's loss, and for how long; None where nothing of that is known."""
    passes = {one["name"]: one["parameters"] for one in report["passes"]}
    rounding = passes.get("quantize" if report.get("calibration") else "press", {})
    algorithm = rounding.get("algorithm")
    is_4_bits = "press" in passes and rounding.get("precision") == "int4"
    if not is_4_bits or algorithm not in _LOSSES or algorithm == _FINEST:
        return None
    try:
        finer = replace(workflow, passes=recipes.press_recipe({"algorithm": _FINEST}, workflow.target))
        planned = plan(finer)
    except ColdpressError:
        return None
    left = [fine / now for fine, now in zip(_LOSSES[_FINEST], _LOSSES[algorithm], strict=True)]
    share = sum(left) / len(left)
    return f"--algorithm {_FINEST} would leave about {share:.0%} of this loss, in about {planned['seconds']:.0f} s."


def _passed_over(step: Step, shape: Shape) -> bool:
    """Whether a step will leave the model as it is."""
    return bool(step.parameters.get("if_possible")) and shape.total_stored > 0


def _alternatives(
    workflow: Workflow, shape: Shape, planned: dict[str, Any], quantize: Quantize | None
) -> dict[str, dict[str, Any]]:
    """What the usual algorithms would take as a whole, and what they leave of the divergence of `rtn`, roughly."""
    if shape.total_stored:
        return {}
    threads = workflow.target.thread_count
    others = planned["seconds"] - planned["calibrate_s"] - planned["press_s"]
    calibrated = quantize or Quantize(algorithm=recipes.DEFAULT, data=DataSource(**AS_NEEDED))
    seconds = {name: others + _press_s(shape, name, threads) for name in ("rtn", "kquant")}
    press_s = _press_s(replace(shape, linear=0), "kquant", threads)
    seconds[calibrated.algorithm] = others + press_s + _calibrate_s(shape, calibrated, threads)
    return {name: {"seconds": taken, "loss": _LOSSES.get(name)} for name, taken in seconds.items()}


def _calibrate_s(shape: Shape, quantize: Quantize, threads: int) -> float:
    """Running the text and summing up its inputs, then some products of each weight with a Gram matrix."""
    if not quantize.needs_data:
        return _CALIBRATE_START_S
    sweeps = {"best": 20}.get(quantize.algorithm, 5)
    tokens = quantize.tokens(shape.widest)
    work = shape.linear * (3 * tokens + sweeps * (shape.hidden + shape.widest) / 2)
    if quantize.algorithm == "best":
        work += tokens * (3 * shape.linear + 2 * shape.embedding)  # forward, again, and back
    return _CALIBRATE_START_S + work / (_CALIBRATE_FLOPS_PER_SECOND_AND_THREAD * threads)


def _predict(workflow: Workflow, shape: Shape, press: Press, quantize: Quantize | None) -> dict[str, Any]:
    output, threads = output_bytes(shape, press, workflow.target), workflow.target.thread_count
    memory, verify_s = [_CAPTURE_BYTES, 60_000_000 + threads * _CHUNK_BYTES], 0.0
    if workflow.verify.enabled:
        verify_s = _VERIFY_START_S + 2 * shape.total * _VERIFY_TOKENS / _VERIFY_FLOPS_PER_SECOND
        memory.append(_VERIFY_BYTES + 4 * shape.embedding + output)
    calibrate_s, algorithm, rounded = 0.0, press.algorithm, shape
    if quantize is not None:
        layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.widest
        memory.append(_CALIBRATE_BYTES + 6 * layer + 12 * shape.widest**2)
        calibrate_s, rounded = _calibrate_s(shape, quantize, threads), replace(shape, linear=0)
    planned = Plan(
        model=workflow.model,
        weights=shape.total,
        steps=[],
        output_bytes=output,
        disk_bytes=output,
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        peak_memory_bytes=max(memory),
        capture_s=_CAPTURE_S,
        calibrate_s=calibrate_s,
        press_s=_press_s(rounded, algorithm, threads),
        verify_s=verify_s,
    )
    return {**asdict(planned), "seconds": planned.seconds}


def _press_s(shape: Shape, algorithm: str, threads: int) -> float:
    work = {algorithm: shape.total - shape.total_stored, AS_STORED: shape.total_stored}
    return sum(weights / (_WEIGHTS_PER_SECOND_AND_THREAD[name] * threads) for name, weights in work.items())


def shape_from_config(config: dict[str, Any]) -> Shape:
    """Count a decoder's weights from its configuration alone; biases and norms are left out.

    Layers are taken as attention with (grouped) query, key, value and output, and a gated MLP; for others, and for
    mixtures of experts, this is a guess. So is, for a quantized model, that all layers but the head have one grid.
    """
    grid = usual_grid(config)
    config = {**config, **config.get("text_config", {})}
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    keys = int(config.get("num_key_value_heads") or heads)
    experts = int(config.get("num_experts") or config.get("num_local_experts") or 1)
    wide = int(config.get("moe_intermediate_size") or config["intermediate_size"])
    layer = 2 * hidden * head * (heads + keys) + 3 * hidden * wide * experts
    tied = bool(config.get("tie_word_embeddings", False))
    stored = (Stored("linear", layers * layer, Encoding(grid.bits, grid.block_size, grid.symmetric)),) if grid else ()
    widest = max(hidden, wide, heads * head)
    return Shape(layers * layer, int(config["vocab_size"]) * hidden, tied, hidden, stored, widest)


def shape_of(model: Model) -> Shape:
    """Count a model's weights from its headers (or, for a GGUF file, from its tensor table)."""
    tensors = {} if model.format == "gguf" else tensors_to_press(model.path)[0]
    sizes = {name: span.shape for name, span in tensors.items()} or _gguf_shapes(model.path)
    config = _config(model)
    vocabulary, hidden = int(config.get("vocab_size", 0)), int(config.get("hidden_size") or config.get("d_model") or 0)
    matrices = {name: shape for name, shape in sizes.items() if len(shape) == 2}
    tables = {name: shape for name, shape in matrices.items() if vocabulary and shape[0] >= vocabulary}
    embedding = math.prod(next(iter(tables.values()))) if tables else vocabulary * hidden
    linear = sum(math.prod(shape) for name, shape in matrices.items() if name not in tables)
    tied = len(tables) < 2
    roles = {name: "head" if tied or name.endswith(_HEADS) else "embedding" for name in tables}
    widest = max((shape[1] for shape in matrices.values()), default=0)
    return Shape(linear, embedding, tied, hidden, _stored(tensors, roles), widest)


def _stored(tensors: Mapping[str, Span], roles: Mapping[str, str]) -> tuple[Stored, ...]:
    counts: Counter[tuple[str, Encoding, str]] = Counter()
    for name, span in tensors.items():
        if (encoding := readable_encoding(span)) is not None:
            scale_dtype = stored_scale_dtype([span]) or "float32"
            counts[roles.get(name, "linear"), encoding, scale_dtype] += math.prod(span.shape)
    return tuple(Stored(role, weights, encoding, dtype) for (role, encoding, dtype), weights in counts.items())


def output_bytes(shape: Shape, press: Press, target: Target) -> int:
    """The bytes of graph and weights that ``press`` writes for a model of this shape."""
    request = press.request(target)["precision"]
    width = _BYTES[request["dtype"]]

    def bytes_of(weights: int, encoding: dict[str, Any] | None, scale_dtype: str = request["scale_dtype"]) -> float:
        if encoding is None:
            return weights * width
        zero_bits, scale_bits = 0 if encoding["symmetric"] else encoding["bits"], 8 * min(width, _BYTES[scale_dtype])
        return weights * (encoding["bits"] + (scale_bits + zero_bits) / encoding["block_size"]) / 8

    total = sum(bytes_of(one.weights, asdict(one.encoding), one.scale_dtype) for one in shape.stored)
    for role, weights in shape.roles.items():
        total += bytes_of(weights - sum(one.weights for one in shape.stored if one.role == role), request[role])
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
        ("output", f"{planned['output_bytes'] / 1e6:,.0f} MB{_of_head(planned)}"),
        (
            "disk needed",
            f"{planned['disk_bytes'] / 1e6:,.0f} MB of {planned['free_disk_bytes'] / 1e6:,.0f} MB free{enough}",
        ),
        ("peak memory", f"about {planned['peak_memory_bytes'] / 1e6:,.0f} MB"),
        (
            "time",
            f"about {planned['seconds']:.0f} s (calibrate {planned['calibrate_s']:.0f}, "
            f"capture {planned['capture_s']:.0f}, press {planned['press_s']:.0f}, verify {planned['verify_s']:.0f})",
        ),
        *((f"--algorithm {name}", _described(one)) for name, one in planned["algorithms"].items()),
    ):
        shown.add_row(name, value)
    return shown


def _of_head(planned: dict[str, Any]) -> str:
    smaller = planned["output_bytes_with_small_head"]
    return "" if smaller is None else f", or {smaller / 1e6:,.0f} MB if calibration finds that 4 bits in the head pay"


def _described(algorithm: dict[str, Any]) -> str:
    least, most = algorithm["loss"] or (1.0, 1.0)
    text = f"about {algorithm['seconds']:.0f} s"
    return text if least == 1 else f"{text}, {least:.0%} to {most:.0%} of the divergence of rtn on models we measured"


def _gguf_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from gguf import GGUFReader

    return {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in GGUFReader(file).tensors}


def _config(model: Model) -> dict[str, Any]:
    if model.format == "gguf":
        rows, hidden = _gguf_shapes(model.path).get("token_embd.weight", (0, 0))
        return {"vocab_size": rows, "hidden_size": hidden}
    config: dict[str, Any] = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    return {**config, **config.get("text_config", {})}
