"""Quantize the linear layers of a Hugging Face model for the inputs they really get, layer by layer.

One run over a calibration text gives the Gram matrix ``X'X`` of every linear's input (the Gram pass,
calibration/grams.py); it is kept, so another algorithm or budget on the same text does not run the model again. From
these matrices each layer is quantized alone: AWQ scales where they can be folded, clipping, GPTQ with static groups and
act-order, a polish. One layer is in memory at a time, each finished layer is committed, and a run that was killed goes
on from there. ``best`` counts tokens by what they matter for the answers (calibration/saliency.py).

The result is a Hugging Face folder that plain transformers loads, in the format of compressed-tensors, GPTQ or AWQ.
``auto-opt`` presses it to ONNX with exactly these codes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of, weights_of
from coldpress.models.provenance import CalibrationRecord, Provenance, QuantizedLayer, Timing
from coldpress.parts import Context, DataSource, Pass, option
from coldpress.target import Target

if TYPE_CHECKING:
    from coldpress.calibration.budget import Budget
    from coldpress.calibration.grams import GramFolder
    from coldpress.calibration.head import Trial
    from coldpress.calibration.layer_quantizer import LayerQuantizer
    from coldpress.calibration.module_grids import ModuleGrids

ALGORITHMS = ("best", "gptq", "awq", "autoround", "kquant", "hqq", "rtn")
PRECISIONS = ("int4", "int8", "int3", "int2")
PROMOTIONS = ("last", "down", "mixed")
FORMATS = ("compressed-tensors", "gptq", "awq")
_CALIBRATED = ("best", "gptq", "awq", "autoround")
LM_HEAD = "lm_head"
MIXED_BITS = (2, 4, 8)
_OF_A_CALIBRATION = ("data", "max_memory")
#: what a layer takes, torch and all, where it is rounded while the next one runs
_SMALL_BYTES = 650_000_000
#: how much text the sensitivities are measured on
_SENSITIVITY_WINDOWS, _SENSITIVITY_TOKENS = 2, 256


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize the linear layers of a Hugging Face model for the inputs they really get, layer by layer."""

    accepts: ClassVar[tuple[str, ...]] = ("hf",)
    produces: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    version: ClassVar[int] = 7

    algorithm: str = option(
        "best is AWQ scales, GPTQ and a polish together, with tokens weighed by what they matter", "best", ALGORITHMS
    )
    precision: str = option("bits of a weight", "int4", PRECISIONS)
    group_size: int = option("weights that share a scale, along the inputs of a layer", 32, (16, 32, 64, 128, 256))
    symmetric: bool | None = option("grid without zero points; default: only for 8 bits", None)
    format: str = option("how the checkpoint is packed", "compressed-tensors", FORMATS)
    lm_head: bool = option("quantize the layer that gives the logits, too", False)
    embeddings: bool = option("quantize the token embedding, too, and the head that is tied to it", False)
    head_bits: int | None = option(
        "bits of the layer that gives the logits: 4, or 0 for 4 where that pays; default: as lm_head says", None, (0, 4)
    )
    target_bits: float | None = option("bits per weight on average, scales included: 2, 4 or 8 for each layer", None)
    max_size: str | None = option("size of the weights once pressed, such as 90MB: 2, 4 or 8 bits for each layer", None)
    modules_to_not_convert: tuple[str, ...] = option("globs over module names that stay float", ())
    overrides: tuple[str, ...] = option("other bits for some modules, as GLOB=int8; the first that matches counts", ())
    promote: str | None = option(
        "8 bits by place, as llama.cpp mixes them: the last layer; and down projections of some layers; and values",
        None,
        PROMOTIONS,
    )
    data: DataSource | None = option(
        "what to calibrate on: any data with input_ids; default: calibration_text, the text that coldpress ships", None
    )
    max_memory: float | None = option("gigabytes that calibration may take; fewer windows run at once", None)
    polish_seconds: float | None = option(
        "time for the polish of one layer; the codes then depend on the machine", None
    )
    trust_remote_code: bool = option("run model code that comes with the model", False)
    if_possible: bool = option("leave a model that cannot be calibrated as it is, and say why", False)

    def check(self, model: Model | Planned, target: Target) -> None:
        self.module_grids("float16").check()
        self._check_budget(model)
        if not self.if_possible and _is_quantized(model):
            raise ColdpressError(
                f"{weights_of(model)} is quantized already",
                hint="quantize its float source, or press it as it is with auto-opt",
            )
        if self.promote and (self.is_mixed or self.format != "compressed-tensors"):
            raise ColdpressError(
                "promote has no effect beside a budget, and only compressed-tensors holds layers of different bits",
                hint="leave promote, or target_bits, max_size and format, out",
            )
        if self.format == "awq" and self.precision != "int4":
            raise ColdpressError(
                f"the format awq holds 4 bits, not {self.precision}", hint="use --format compressed-tensors"
            )
        self._refuse_unread_data()
        self._check_head()
        if self.data is not None:
            self.data.make().check(model)

    def _check_head(self) -> None:
        if self.head_bits is None:
            return
        if self.precision != "int4" or self.is_mixed or self.lm_head or self.embeddings:
            raise ColdpressError(
                "head_bits has no effect beside lm_head, embeddings, a budget, or a precision other than int4",
                hint="leave head_bits out",
            )
        if self.head_bits == 0 and self.algorithm not in _CALIBRATED:
            raise ColdpressError(
                f"head_bits 0 measures on calibration data, and {self.algorithm} has none",
                hint=f"use --algorithm {' or '.join(_CALIBRATED)}",
            )

    def _check_budget(self, model: Model | Planned) -> None:
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
        if self.is_mixed and (folder := weights_of(model)) is not None and not _is_quantized(model):
            self.budget.check_possible(folder, self.module_grids("float16"))

    def _refuse_unread_data(self) -> None:
        """Data options have no effect on algorithms that need no data, so they are not taken in silence."""
        given = [name for name in _OF_A_CALIBRATION if getattr(self, name) != getattr(Quantize, name)]
        if given and not self.needs_data:
            raise ColdpressError(
                f"{given[0]} has no effect with {self.algorithm}, which needs no data",
                hint=f"use --algorithm {' or '.join(_CALIBRATED)}",
            )
        if self.polish_seconds is not None and self.algorithm not in ("best", "autoround"):
            raise ColdpressError(f"polish_seconds has no effect with {self.algorithm}", hint="use --algorithm best")

    def foretold(self, model: Model | Planned) -> Model | Planned:
        if self.if_possible and _is_quantized(model):
            return model
        return Planned("hf", replace(model.provenance, precision=self.precision), settings_of(model))

    def run(self, model: Model, ctx: Context) -> Model:
        if self.if_possible and _is_quantized(model):
            return _left(model, "The source is quantized already; its codes are pressed as they are")
        try:
            return self._quantized(model, ctx)
        except ColdpressError as error:
            if not self.if_possible:
                raise
            return _left(model, f"Rounded without data, as it could not be calibrated: {error.message}")

    def _quantized(self, model: Model, ctx: Context) -> Model:
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
        from coldpress.calibration.budget import Budget

        return Budget(self.target_bits, self.max_size)

    @property
    def is_mixed(self) -> bool:
        """Whether bits are to be spread over the layers by a budget."""
        return self.budget.is_set

    def tokens(self, widest: int) -> int:
        """About how many tokens a model is calibrated on whose widest layer has so many inputs."""
        from coldpress.data.batches.calibration import SHIPPED, expected_tokens

        return expected_tokens(self.data or SHIPPED, widest)

    def module_grids(self, scale_dtype: str) -> ModuleGrids:
        """How the grids of modules are chosen."""
        from coldpress.calibration.module_grids import ModuleGrids

        grid = (self.bits, self.group_size, self.symmetric, scale_dtype)
        exceptions = (self.modules_to_not_convert, self.overrides, not self.if_possible, self.promote)
        return ModuleGrids(*grid, self.format, *exceptions)


def _is_quantized(model: Model | Planned) -> bool:
    """Whether the weights are codes already; not known of a model that is not there yet."""
    from coldpress.models.packed.folder import quantization_config

    folder = weights_of(model)
    return folder is not None and bool(quantization_config(folder))


def _left(model: Model, remark: str) -> Model:
    """The model as it is, with a remark."""
    return replace(model, provenance=model.provenance.remarked(remark))


class _Run:
    """One run of the pass: what it works on, and what is known of it."""

    def __init__(self, request: Quantize, model: Model, ctx: Context):
        import numpy as np
        import torch

        from coldpress.calibration.layer_quantizer import check_experts
        from coldpress.data.batches.calibration import SHIPPED, windows
        from coldpress.networks import heap
        from coldpress.networks.layerwise import Layerwise

        self.request, self.model, self.ctx = request, model, ctx
        self.trial: Trial | None = None
        self.remarks: list[str] = []
        heap.keep_small()
        self.windows = windows(request.data or SHIPPED, model, ctx) if request.needs_data else None
        heap.give_back()  # the tokenizer's
        ids = np.zeros((1, 8), np.int64) if self.windows is None else self.windows.ids
        device = "cuda" if ctx.target.device == "gpu" and torch.cuda.is_available() else "cpu"
        self.decoder = Layerwise(
            model.path, ids, device=device, scratch=ctx.scratch, trust_remote_code=request.trust_remote_code
        )
        self._check_ids(ids)
        self.shapes = self._shapes()
        self._check_memory(ids.shape[1])
        routers = [router for layer in self.decoder.layers for router in self.decoder.routers(layer)]
        self.chosen = request.module_grids(self.scale_dtype)
        self.grids = self.chosen.of(self.shapes, routers)
        check_experts(self.decoder, self.grids)
        if self.windows is not None and not request.is_mixed and self._is_settled():
            self.windows = None

    def _is_settled(self) -> bool:
        """Whether all weights lie on their grids already, so that no text has anything to say."""
        from coldpress.quant.lattice import seems_on_lattice

        ends = {LM_HEAD: self.decoder.head_weight, self.decoder.embedding: self.decoder.embedding_weight}
        modules = {module: layer for layer in self.decoder.layers for module in self.decoder.linears(layer)}
        for name, grid in self.grids.items():
            layer = modules.get(name)
            weight = self.decoder.weights(layer)[f"{name}.weight"] if layer else ends[name]().cpu().numpy()
            if not seems_on_lattice(weight, grid):
                return False
        return True

    def _check_memory(self, tokens: int) -> None:
        """Where calibration is not asked for by name, it shall not use up the machine."""
        import psutil

        if self.request.if_possible:
            needed, free = sum(self.decoder.memory(tokens)), psutil.virtual_memory().available
            if needed > free:
                raise ColdpressError(f"that takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")

    def _check_ids(self, ids: Any) -> None:
        rows, _ = self.decoder.shape(f"{self.decoder.embedding}.weight")
        if ids.max() >= rows:
            raise ColdpressError(
                f"the tokenizer in {self.model.path} gives token {ids.max()}, and the embedding has {rows} rows",
                hint="the tokenizer belongs to another model",
            )

    def run(self) -> Model:
        started = time.perf_counter()
        with self._grams() as grams:
            calibrated = time.perf_counter()
            if self.request.is_mixed:
                self.grids = self._allocated(grams)
            layers = self._layers(grams)
        first = () if self._is_small else (Timing("calibrate", calibrated - started),)
        rest = "calibrate and quantize" if self._is_small else "quantize"
        timings = (*first, Timing(rest, time.perf_counter() - calibrated))
        return Model(self.ctx.scratch, "hf", "", self._provenance(layers, timings))

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
        if request.head_bits == request.bits:
            shapes[self.head] = table
        return shapes

    @property
    def head(self) -> str:
        """What gives the logits: the head, or the embedding that it is tied to."""
        return self.decoder.embedding if self.decoder.is_tied else LM_HEAD

    def _try_head(self, worker: LayerQuantizer) -> list[str]:
        """What there is to quantize of the head: nothing, unless its four bits pay; all that is known of it is
        noted."""
        from coldpress.calibration.head import Trial, divergence, saved_bytes
        from coldpress.calibration.sensitivity import stored_bytes

        if self.request.head_bits != 0 or self.chosen.stays_float(self.head) or worker.grams is None:
            return []
        if self.windows is None or self.windows.repeats_itself:  # such text says little of others
            return []
        shape = self.decoder.shape(f"{self.decoder.embedding}.weight")
        layers = sum(stored_bytes(self.shapes[name], grid) for name, grid in self.grids.items())
        self.grids[self.head] = self.chosen.grid(self.head, shape[1])
        fewer = stored_bytes(shape, self.grids[self.head])
        lost = divergence(self.decoder, worker.grams.held(), worker.rounded_head)
        self.trial = Trial(lost, saved_bytes(shape, fewer, layers))
        if self.trial.pays:
            return [self.head]
        del self.grids[self.head]
        return []

    @contextmanager
    def _grams(self) -> Iterator[GramFolder | None]:
        """The Gram matrices, all of them, or, where two layers fit into the memory, while they come."""
        from coldpress.calibration.grams import GrowingGrams, collect, multiplies_in_bfloat16

        if self.windows is None:
            yield None
            return
        facts = {
            "model": self.model.key,
            "text": self.windows.digest,
            "network": "in float; some inputs of the head are held",
            "bfloat16": multiplies_in_bfloat16(self.decoder.device),
        }
        self.decoder.batch = self.decoder.windows_at_once(self.request.max_memory)
        counting = self._saliency(facts)
        self.weighs_tokens = counting is not None
        with self.ctx.kept("grams", {**facts, "weighed": self.weighs_tokens}) as folder:
            collecting = partial(collect, self.decoder, folder, counting=counting)
            if not self._is_small:
                yield collecting(self.ctx.progress)
                return
            with self._half_the_threads(), GrowingGrams(folder, collecting) as grams:
                yield grams

    def _saliency(self, facts: dict[str, Any]) -> Any:
        """How much each token counts for `best`; None where all count alike, as with experts."""
        from coldpress.calibration.saliency import saliency

        if self.request.algorithm != "best" or any(map(self.decoder.experts, self.decoder.layers)):
            return None
        self.decoder.in_bfloat16 = facts["bfloat16"]
        try:
            with self.ctx.kept("saliency", facts) as folder:
                return saliency(self.decoder, folder, self.ctx.progress)
        except ColdpressError as error:
            self.remarks.append(f"All tokens of the calibration text count alike: {error.message}")
            return None

    @property
    def _is_small(self) -> bool:
        """Whether layers are so small that one can be rounded while the next one runs."""
        if self.windows is None or self.request.is_mixed or self.request.max_memory is not None:
            return False
        layer, windows = self.decoder.memory(self.windows.ids.size // len(self.windows.ids))
        return self.decoder.device == "cpu" and self.ctx.target.thread_count > 1 and layer + windows < _SMALL_BYTES

    @property
    def _layers_at_once(self) -> int:
        """Small layers are rounded in pairs: most steps are too small for torch to divide them."""
        return 2 if self._is_small else 1

    @contextmanager
    def _half_the_threads(self) -> Iterator[None]:
        import torch

        torch.set_num_threads(max(1, self.ctx.target.thread_count // 2))
        try:
            yield
        finally:
            torch.set_num_threads(self.ctx.target.thread_count)

    def _allocated(self, grams: Any) -> dict[str, Any]:
        """The grids of a budget: bits for each group of modules by a knapsack over measured sensitivities."""
        from coldpress.calibration.sensitivity import Question, menu, stored_bytes
        from coldpress.quant.allocate import allocate

        assert self.windows is not None
        request = self.request
        fixed = {name: grid for name, grid in self.grids.items() if self.chosen.has_override(name)}
        question = Question(
            frozenset(self.grids) - frozenset(fixed),
            MIXED_BITS,
            lambda name, bits: self.chosen.grid(name, self.shapes[name][1], bits),
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

    def _layers(self, grams: Any) -> tuple[QuantizedLayer, ...]:
        """Quantize layer by layer, going on where a killed run was, and put the checkpoint together."""
        from coldpress.calibration.layer_quantizer import LayerQuantizer
        from coldpress.models.quantized_folder import LayerFiles, assemble
        from coldpress.models.weight_files import EMBEDDING_CODES
        from coldpress.networks import heap

        ends = [name for name in (LM_HEAD, self.decoder.embedding) if name in self.grids]
        request = self.request
        worker = LayerQuantizer(
            self.decoder, self.grids, grams, request.algorithm, request.format, self.scale_dtype, request.polish_seconds
        )
        done: list[QuantizedLayer] = []
        with self.ctx.kept("quantize", self._facts()) as work, ThreadPoolExecutor(self._layers_at_once) as pool:
            files, names = LayerFiles(work), [*self.decoder.layers, *ends]

            def finished(name: str) -> list[QuantizedLayer]:
                found = files.quantized(name)
                if found is None:
                    if name == LM_HEAD:
                        tensors, found = worker.head()
                    elif name == self.decoder.embedding:
                        tensors, found = worker.embedding(work)
                    else:
                        tensors, found = worker.layer(name)
                    files.put(name, tensors, found)
                    del tensors
                    heap.give_back(heap.LAYERS_BYTES)
                return found

            each = chain(pool.map(finished, list(names)), map(finished, self._head_after(names, worker)))
            for place, found in enumerate(each):
                self.ctx.progress("quantizing", place, max(len(names), place + 1))
                done += found
            self.ctx.progress("quantizing", len(names), len(names))
            packed = {name: grid for name, grid in self.grids.items() if name != self.decoder.embedding}
            assemble(self.model.path, files, names, packed, request.format, self.ctx.scratch)
            if (work / EMBEDDING_CODES).is_file():
                shutil.copyfile(work / EMBEDDING_CODES, self.ctx.scratch / EMBEDDING_CODES)
            shutil.rmtree(work)
        return tuple(done)

    def _head_after(self, names: list[str], worker: LayerQuantizer) -> Iterator[str]:
        """The head's name, where it is found to pay once these are done; it is added to them."""
        from coldpress.networks import heap

        heap.give_back()
        names += self._try_head(worker)
        yield from names[-1:] if self.trial and self.trial.pays else ()

    def _facts(self) -> dict[str, Any]:
        """All that decides the codes: what is left of a killed run serves only the same request."""
        request = {name: value for name, value in asdict(self.request).items() if name not in _OF_A_CALIBRATION}
        text = None if self.windows is None else self.windows.digest
        return {"pass": [self.request.version, request], "model": self.model.key, "text": text, "seed": self.ctx.seed}

    def _remarks_on_text(self) -> list[str]:
        if self.windows is None or not self.windows.repeats_itself:
            return []
        return [
            f"The calibration text repeats itself: {self.windows.pairs} different pairs of tokens in"
            f" {self.windows.tokens}. On other text the model may lose more than without it."
        ]

    def _provenance(self, layers: tuple[QuantizedLayer, ...], timings: tuple[Timing, ...]) -> Provenance:
        from coldpress.calibration.layer_quantizer import remarks

        data, head = self.windows, self.trial.record if self.trial else None
        calibration = CalibrationRecord(layers=layers, head=head)
        if data is not None:
            calibration = CalibrationRecord(
                data.sources, len(data.ids), int(data.ids.size), data.digest, layers, head, self.weighs_tokens
            )
        known = replace(
            self.model.provenance,
            precision=self.request.precision,
            layers=layers,
            calibration=calibration,
            timings=timings,
        )
        on_head = [self.trial.says] if self.trial else []
        return known.remarked(*self.remarks, *remarks(layers), *self._remarks_on_text(), *on_head)
