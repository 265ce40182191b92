"""Quantize the linear layers of a Hugging Face model for the inputs they really get, layer by layer.

One run over a calibration text gives the Gram matrix ``X'X`` of every linear's input (the Gram pass, networks/grams.py); it is
kept, so another algorithm or budget on the same text does not run the model again. From these matrices each layer is
quantized alone: AWQ scales where they can be folded, clipping, GPTQ with static groups and act-order, a polish. One layer is in
memory at a time, each finished layer is committed, and a run that was killed goes on from there.

The result is a Hugging Face folder that plain transformers loads, in the format of compressed-tensors, GPTQ or AWQ. ``auto-opt``
presses it to ONNX with exactly these codes.
"""

from __future__ import annotations

import fnmatch
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from coldpress.errors import ColdpressError
from coldpress.model import Model
from coldpress.parts import Context, Pass
from coldpress.target import Target

if TYPE_CHECKING:
    from coldpress.networks.budget import Budget

ALGORITHMS = ("best", "gptq", "awq", "autoround", "kquant", "hqq", "rtn")
PRECISIONS = ("int4", "int8", "int3", "int2")
FORMATS = ("compressed-tensors", "gptq", "awq")
_CALIBRATED = ("best", "gptq", "awq", "autoround")
LM_HEAD = "lm_head"
MIXED_BITS = (2, 4, 8)
_DATA_OPTIONS = (
    *("data_name", "data_files", "text_template", "use_chat_template", "max_seq_len", "num_samples"),
    "max_memory",
)
#: how much text the sensitivities are measured on
_SENSITIVITY_WINDOWS, _SENSITIVITY_TOKENS = 2, 256


def _option(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize the linear layers of a Hugging Face model for the inputs they really get, layer by layer."""

    accepts: ClassVar[tuple[str, ...]] = ("hf",)
    produces: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    reads: ClassVar[tuple[str, ...]] = ("data_files",)
    version: ClassVar[int] = 2

    algorithm: str = _option("best", "best is AWQ scales, GPTQ and a polish together", ALGORITHMS)
    precision: str = _option("int4", "bits of a weight", PRECISIONS)
    group_size: int = _option(32, "weights that share a scale, along the inputs of a layer", (16, 32, 64, 128, 256))
    symmetric: bool | None = _option(None, "grid without zero points; default: only for 8 bits")
    format: str = _option("compressed-tensors", "how the checkpoint is packed", FORMATS)
    lm_head: bool = _option(False, "quantize the layer that gives the logits, too")
    embeddings: bool = _option(False, "quantize the token embedding, too, and the head that is tied to it")
    target_bits: float | None = _option(None, "bits per weight on average, scales included: 2, 4 or 8 for each layer")
    max_size: str | None = _option(
        None, "size of the weights once pressed, such as 90MB: 2, 4 or 8 bits for each layer"
    )
    modules_to_not_convert: tuple[str, ...] = _option((), "globs over module names that stay float")
    overrides: tuple[str, ...] = _option((), "other bits for some modules, as GLOB=int8; the first that matches counts")
    data_name: str | None = _option(None, "calibration data: json, csv, parquet, text, or a dataset of the hub")
    data_files: tuple[str, ...] = _option((), "files of calibration data; without any, coldpress's own text")
    text_template: str | None = _option(None, "text of a row, such as '### Question: {prompt}'")
    use_chat_template: bool | None = _option(None, "put each text into the model's chat template")
    max_seq_len: int = _option(512, "tokens of a calibration window")
    num_samples: int = _option(128, "calibration windows at most")
    max_memory: float | None = _option(None, "gigabytes that calibration may take; fewer windows run at once")
    polish_seconds: float | None = _option(
        None, "time for the polish of one layer; the codes then depend on the machine"
    )
    trust_remote_code: bool = _option(False, "run model code that comes with the model")

    def check(self, model: Model, target: Target) -> None:
        from coldpress.networks.packed import quantization_config

        self._bits_of("")
        self._check_budget()
        if model.format == "hf" and (model.path / "config.json").is_file() and quantization_config(model.path):
            raise ColdpressError(
                f"{model.path} is quantized already",
                hint="quantize its float source, or press it as it is with auto-opt",
            )
        if self.format == "awq" and self.precision != "int4":
            raise ColdpressError(
                f"the format awq holds 4 bits, not {self.precision}", hint="use --format compressed-tensors"
            )
        self._refuse_unread_data()

    def _check_budget(self) -> None:
        self.budget.check()
        if self.is_mixed and self.format != "compressed-tensors":
            raise ColdpressError(
                f"a {self.format} checkpoint has the same bits everywhere", hint="use --format compressed-tensors"
            )
        if self.is_mixed and self.precision != "int4":
            raise ColdpressError(
                f"precision {self.precision} has no effect with a budget, which gives each layer 2, 4 or 8 bits",
                hint="leave one out; --overrides 'GLOB=int8' settles the bits of some modules",
            )

    def _refuse_unread_data(self) -> None:
        """Data options have no effect on algorithms that need no data, so they are not taken in silence."""
        given = [name for name in _DATA_OPTIONS if getattr(self, name) != getattr(Quantize, name)]
        if given and not self.needs_data:
            raise ColdpressError(
                f"{given[0]} has no effect with {self.algorithm}, which needs no data",
                hint=f"use --algorithm {' or '.join(_CALIBRATED)}",
            )
        if self.polish_seconds is not None and self.algorithm not in ("best", "autoround"):
            raise ColdpressError(f"polish_seconds has no effect with {self.algorithm}", hint="use --algorithm best")

    def run(self, model: Model, ctx: Context) -> Model:
        import torch

        torch.set_num_threads(ctx.target.thread_count)
        return _Run(self, model, ctx).run()

    @property
    def bits(self) -> int:
        return int(self.precision.removeprefix("int"))

    @property
    def needs_data(self) -> bool:
        return self.algorithm in (*_CALIBRATED, "kquant") or self.is_mixed

    @property
    def budget(self) -> Budget:
        from coldpress.networks.budget import Budget

        return Budget(self.target_bits, self.max_size)

    @property
    def is_mixed(self) -> bool:
        """Whether bits are to be spread over the layers by a budget."""
        return self.budget.is_set

    def text(self) -> Any:
        """The calibration text that is asked for."""
        from coldpress.texts.calibration import CalibrationText

        return CalibrationText(**{entry.name: getattr(self, entry.name) for entry in fields(CalibrationText)})

    def stays_float(self, module: str) -> bool:
        return any(fnmatch.fnmatchcase(module, pattern) for pattern in self.modules_to_not_convert)

    def has_override(self, module: str) -> bool:
        return any(fnmatch.fnmatchcase(module, override.partition("=")[0]) for override in self.overrides)

    def grids(
        self, shapes: Mapping[str, tuple[int, int]], scale_dtype: str, routers: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The grid of every module that is quantized; globs that match nothing are refused.

        ``routers``: modules that stay float whatever is asked.
        """
        globs = [(pattern, routers) for pattern in self.modules_to_not_convert]
        for pattern, others in [*globs, *((override.partition("=")[0], ()) for override in self.overrides)]:
            if not fnmatch.filter([*shapes, *others, LM_HEAD], pattern):
                raise ColdpressError(
                    f"'{pattern}' matches no linear layer of this model",
                    hint="it is a glob over whole names, such as '*.v_proj'",
                )
        quantized = {name: columns for name, (_, columns) in shapes.items() if not self.stays_float(name)}
        if not quantized:
            raise ColdpressError("every layer stays float, so nothing is left to quantize")
        return {name: self.grid(name, columns, scale_dtype) for name, columns in quantized.items()}

    def grid(self, module: str, columns: int, scale_dtype: str, bits: int | None = None) -> Any:
        """The grid of a module, with its own bits or those given."""
        from coldpress.quant.grid import Grid

        bits = bits or self._bits_of(module)
        if columns % self.group_size:
            fitting = [size for size in (128, 64, 32, 16) if columns % size == 0]
            raise ColdpressError(
                f"'{module}' has {columns} inputs, which groups of {self.group_size} do not divide; "
                f"a {self.format} checkpoint cannot pad them",
                hint=f"use --group_size {fitting[0]}" if fitting else f"use --modules_to_not_convert '{module}'",
            )
        return Grid(bits, self.group_size, bits == 8 if self.symmetric is None else self.symmetric, scale_dtype)

    def _bits_of(self, module: str) -> int:
        """Bits of a module; raises ColdpressError for an override that cannot be read."""
        found = None
        for override in self.overrides:
            pattern, _, precision = override.partition("=")
            if precision not in PRECISIONS:
                raise ColdpressError(
                    f"overrides: '{override}' is not GLOB=PRECISION",
                    hint=f"such as '*.v_proj=int8'; precisions: {', '.join(PRECISIONS)}",
                )
            if found is None and fnmatch.fnmatchcase(module, pattern):
                found = precision
        return int((found or self.precision).removeprefix("int"))


class _Run:
    """One run of the pass: what it works on, and what is known of it."""

    def __init__(self, request: Quantize, model: Model, ctx: Context):
        import numpy as np
        import torch

        from coldpress.networks import heap
        from coldpress.networks.layer_quantizer import check_experts
        from coldpress.networks.layerwise import Layerwise
        from coldpress.texts.calibration import windows

        self.request, self.model, self.ctx = request, model, ctx
        heap.keep_small()
        self.windows = windows(model.path, request.text(), ctx.seed) if request.needs_data else None
        heap.give_back()  # the tokenizer's
        ids = np.zeros((1, 8), np.int64) if self.windows is None else self.windows.ids
        device = "cuda" if ctx.target.device == "gpu" and torch.cuda.is_available() else "cpu"
        self.decoder = Layerwise(
            model.path, ids, device=device, scratch=ctx.scratch, trust_remote_code=request.trust_remote_code
        )
        self._check_ids(ids)
        self.shapes = self._shapes()
        routers = [router for layer in self.decoder.layers for router in self.decoder.routers(layer)]
        self.grids = request.grids(self.shapes, self.scale_dtype, routers)
        check_experts(self.decoder, self.grids)

    def _check_ids(self, ids: Any) -> None:
        rows, _ = self.decoder.shape(f"{self.decoder.embedding}.weight")
        if ids.max() >= rows:
            raise ColdpressError(
                f"the tokenizer in {self.model.path} gives token {ids.max()}, and the embedding has {rows} rows",
                hint="the tokenizer belongs to another model",
            )

    def run(self) -> Model:
        started = time.perf_counter()
        grams = self._grams()
        calibrated = time.perf_counter()
        if self.request.is_mixed:
            self.grids = self._allocated(grams)
        notes = self._layers(grams)
        timings = [
            {"step": "calibrate", "seconds": calibrated - started},
            {"step": "quantize", "seconds": time.perf_counter() - calibrated},
        ]
        return Model(self.ctx.scratch, "hf", "", self._notes(notes, timings))

    @property
    def scale_dtype(self) -> str:
        """Scales are halves of the kind that the checkpoint is in, float16 where it is in float32."""
        return "bfloat16" if self.decoder.dtype == "bfloat16" else "float16"

    def _shapes(self) -> dict[str, tuple[int, int]]:
        """Every module that can be quantized, ``(rows, columns)``."""
        linears = (item for layer in self.decoder.layers for item in self.decoder.linears(layer).items())
        shapes = {name: (module.out_features, module.in_features) for name, module in linears}
        table, tied, request = (
            self.decoder.shape(f"{self.decoder.embedding}.weight"),
            self.decoder.is_tied,
            self.request,
        )
        if request.lm_head and tied and not request.embeddings:
            raise ColdpressError(
                "lm_head: this model's head is its token embedding", hint="quantize both with --embeddings"
            )
        if not tied and (request.lm_head or request.is_mixed):
            shapes[LM_HEAD] = table
        if request.embeddings or request.is_mixed:
            shapes[self.decoder.embedding] = table
        return shapes

    def _grams(self) -> Any:
        from coldpress.networks.grams import collect, multiplies_in_bfloat16
        from coldpress.quant.grid import Grid

        if self.windows is None:
            return None
        grid = Grid(self.request.bits, self.request.group_size, False)
        facts = {
            "model": self.model.key,
            "text": self.windows.digest,
            "grid": asdict(grid),
            "bfloat16": multiplies_in_bfloat16(self.decoder.device),
        }
        plain = [name for name in self.shapes if self.request.stays_float(name)]
        with self.ctx.kept("grams", {**facts, "float": plain}) as folder:
            self.decoder.batch = self.decoder.windows_at_once(self.request.max_memory)
            return collect(self.decoder, grid, folder, lambda name: name in plain, self.ctx.progress)

    def _allocated(self, grams: Any) -> dict[str, Any]:
        """The grids of a budget: bits for each group of modules by a knapsack over measured sensitivities."""
        from coldpress.networks.sensitivity import Question, menu, stored_bytes
        from coldpress.quant.allocate import allocate

        assert self.windows is not None
        request = self.request
        fixed = {name: grid for name, grid in self.grids.items() if request.has_override(name)}
        question = Question(
            frozenset(self.grids) - frozenset(fixed),
            MIXED_BITS,
            lambda name, bits: request.grid(name, self.shapes[name][1], self.scale_dtype, bits),
        )
        walker = type(self.decoder)(
            self.model.path,
            self.windows.ids[:_SENSITIVITY_WINDOWS, :_SENSITIVITY_TOKENS],
            device=self.decoder.device,
            scratch=self.ctx.scratch,
            trust_remote_code=request.trust_remote_code,
        )
        found = menu(walker, grams, question, self.ctx.progress)
        taken = sum(stored_bytes(self.shapes[name], grid) for name, grid in fixed.items())
        least = taken + sum(min(choice.size for choice in choices.values()) for choices in found.values())
        shapes = {name: shape for name, shape in self.shapes.items() if name in self.grids}
        chosen = allocate(found, request.budget.bytes_for(self.decoder, shapes, least) - taken)
        bits = {module: bits for group, bits in chosen.items() for module in group.split(", ")}
        return {name: fixed.get(name) or question.grid_of(name, bits[name]) for name in self.grids}

    def _layers(self, grams: Any) -> list[dict[str, Any]]:
        """Quantize layer by layer, going on where a killed run was, and put the checkpoint together."""
        from coldpress.networks import heap
        from coldpress.networks.layer_quantizer import LayerQuantizer
        from coldpress.networks.quantized_folder import LayerFiles, assemble
        from coldpress.networks.weight_files import EMBEDDING_CODES

        ends = [name for name in (LM_HEAD, self.decoder.embedding) if name in self.grids]
        names = [*self.decoder.layers, *ends]
        request = self.request
        worker = LayerQuantizer(
            self.decoder, self.grids, grams, request.algorithm, request.format, self.scale_dtype, request.polish_seconds
        )
        notes: list[dict[str, Any]] = []
        with self.ctx.kept("quantize", self._facts()) as work:
            files = LayerFiles(work)
            for place, name in enumerate(names):
                self.ctx.progress("quantizing", place, len(names))
                found = files.notes(name)
                if found is None:
                    if name == LM_HEAD:
                        tensors, found = worker.head()
                    elif name == self.decoder.embedding:
                        tensors, found = worker.embedding(work)
                    else:
                        tensors, found = worker.layer(name)
                    files.put(name, tensors, found)
                    del tensors
                    heap.give_back()
                notes += found
            self.ctx.progress("quantizing", len(names), len(names))
            packed = {name: grid for name, grid in self.grids.items() if name != self.decoder.embedding}
            assemble(self.model.path, files, names, packed, request.format, self.ctx.scratch)
            if (work / EMBEDDING_CODES).is_file():
                shutil.copyfile(work / EMBEDDING_CODES, self.ctx.scratch / EMBEDDING_CODES)
            shutil.rmtree(work)
        return notes

    def _facts(self) -> dict[str, Any]:
        """All that decides the codes: what is left of a killed run serves only the same request."""
        request = {name: value for name, value in asdict(self.request).items() if name != "max_memory"}
        text = None if self.windows is None else self.windows.digest
        return {"pass": [self.request.version, request], "model": self.model.key, "text": text, "seed": self.ctx.seed}

    def _notes(self, modules: list[dict[str, Any]], timings: list[dict[str, Any]]) -> dict[str, Any]:
        calibration: dict[str, Any] = {"layers": modules}
        if self.windows is not None:
            calibration |= {
                "text": self.windows.sources,
                "windows": len(self.windows.ids),
                "tokens": int(self.windows.ids.size),
                "digest": self.windows.digest,
            }
        from coldpress.networks.layer_quantizer import remarks

        return {
            **self.model.notes,
            "warnings": [*self.model.notes.get("warnings", []), *remarks(modules)],
            "precision": self.request.precision,
            "layers": modules,
            "calibration": calibration,
            "timings": timings,
        }
