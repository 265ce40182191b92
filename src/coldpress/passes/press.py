"""Press a Hugging Face model to ONNX: capture its graph, then stream its weights into it, quantized.

The graph is captured without weights; each weight is read from the checkpoint, quantized in chunks of rows and
written to its place, so that memory does not grow with the model. Linear layers become ``MatMulNBits``, the
embedding ``GatherBlockQuantized``; an embedding that is tied to the head is stored once. What the checkpoint holds as
codes (compressed-tensors, GPTQ, AWQ) is not quantized again: the same codes, scales and zero points are written.

A base with adapters becomes a graph with LoRA slots, and an adapter file for each adapter beside it. The base's weights
are written as without them.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.capture.exporters import MOBIUS, TORCH_EXPORT, chosen, require_captured
from coldpress.graphs.kernels import Encoding
from coldpress.models import adapter_folder
from coldpress.models.model import Model
from coldpress.models.planned import Planned, adapters_of, settings_of, weights_of
from coldpress.models.provenance import LatticeRecord, QuantizedLayer, Timing, WrittenAdapter
from coldpress.models.tokenizers.tokenizer import check_tokenizer
from coldpress.networks import heap
from coldpress.parts import Context, Pass, option, refuse
from coldpress.parts.needs import installed_version
from coldpress.parts.task import require_task
from coldpress.rules.block_quantized_products import slow_encoding
from coldpress.rules.half_precision import half_on_cpu
from coldpress.target import Target

if TYPE_CHECKING:
    from coldpress.graphs.stream import LayerError
    from coldpress.models.low_rank import LowRank
    from coldpress.models.packed.linear import PackedLinear

PRECISIONS = ("int4", "int8", "fp16", "bf16", "fp32")
ALGORITHMS = ("rtn", "kquant")
#: what onnxruntime-genai reads under ``search`` (its reference of genai_config.json)
SEARCH_KEYS = (
    *("do_sample", "min_length", "max_length", "batch_size", "num_beams", "num_return_sequences", "temperature"),
    *("top_k", "top_p", "early_stopping", "no_repeat_ngram_size", "diversity_penalty", "repetition_penalty"),
    *("length_penalty", "past_present_share_buffer", "random_seed", "chunk_size"),
)
#: the algorithm of a layer whose codes the checkpoint held already
AS_STORED = "as stored"
_GRID_OPTIONS = (
    "algorithm",
    "block_size",
    "symmetric",
    "head_bits",
    "embedding_bits",
    "promote",
    "accuracy_level",
    "scale_dtype",
    "modules_to_not_convert",
)
#: those of them that have an effect on codes of the checkpoint, which stay codes at any precision
_ON_CODES = ("accuracy_level", "modules_to_not_convert")
_FLOATS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
#: what makes the inputs of a model that does not chat, and says what its outputs stand for
_SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "normalizer.json",
    "spiece.model",
    "source.spm",
    "target.spm",
)

#: where a configuration has its number of layers
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Press(Pass):
    accepts = ("hf", "adapter")
    produces = "onnx"
    needs = ("mobius-onnx", "onnxruntime", "onnxruntime-genai")
    version = 14

    precision: str = option("what weights are stored as", "int4", PRECISIONS)
    algorithm: str = option(
        "rounds weights: rtn to the nearest, kquant with a search of scale and zero point", "kquant", ALGORITHMS
    )
    block_size: int = option("weights that share a scale, along the inputs of a layer", 32, (16, 32, 64, 128, 256))
    symmetric: bool | None = option("grid without zero points; default: only for 8 bits, and on GPUs", None)
    head_bits: int = option("least bits of the layer that gives the logits; 16 leaves it float", 8, (4, 8, 16))
    embedding_bits: int = option(
        "least bits of a token embedding that is not tied to the head; 16 leaves it float", 4, (4, 8, 16)
    )
    promote: str | None = option(
        "8 bits by place, as llama.cpp mixes them: down projections of some layers, or those and values",
        None,
        ("down", "mixed"),
    )
    accuracy_level: int | None = option(
        "what the CPU multiplies in: 0 float, 4 int8; default: 4 on CPUs", None, (0, 1, 2, 3, 4)
    )
    scale_dtype: str | None = option(
        "what scales are stored as where the graph computes in float32; default: float16", None, ("float16", "float32")
    )
    modules_to_not_convert: tuple[str, ...] = option("globs over module names whose weights stay float", ())
    use_ort_genai: bool = option("write genai_config.json, for onnxruntime-genai", True)
    task: str | None = option(
        "what the model is for, such as text-classification: another task than the model's own is refused", None
    )
    logits: str | None = option(
        "logits for the last position of a prompt, for all, or as speculation needs them, which is then on in"
        " genai_config.json; default: last for onnxruntime-genai",
        None,
        ("last", "all", "speculation"),
    )
    hidden_states: bool = option("give what the head gets, too: the output 'hidden_states'", False)
    filename: str = option("name of the graph's file", "model.onnx")
    search: dict[str, Any] = option("settings of generation in genai_config.json, over those of the model", dict)
    exporter: str | None = option(
        "who writes the graph: mobius, fused for the runtime, or torch.export; default: as the model needs it",
        None,
        (MOBIUS, TORCH_EXPORT),
    )
    trust_remote_code: bool = option("run configuration code that comes with the model", False)

    def check(self, model: Model | Planned, target: Target) -> None:
        if self.precision in ("fp16", "bf16"):
            fix = "use --precision int8 (a quarter of the size, faster) or fp32, or a GPU with --device gpu"
            refuse(half_on_cpu(self.precision, target, fix))
        if self.scale_dtype is not None and target.short_name != "cpu":
            raise ColdpressError(
                f"scale_dtype has no effect on {target.provider}, whose graphs compute in half precision, scales"
                " included",
                hint="leave it out",
            )
        if self.logits == "speculation":
            self._require_speculation()
        if self.promote and self.precision == "int8":
            raise ColdpressError("promote has no effect with precision int8", hint="leave it out, or use int4")
        self._check_names()
        if (folder := settings_of(model)) is not None:
            if self.task is not None:
                require_task(self.task, json.loads((folder / "config.json").read_text(encoding="utf-8")))
            exporter = chosen(folder, self.exporter)
            self._require_effect(exporter, folder)
            require_captured(folder, exporter, trust_remote_code=self.trust_remote_code)
            _remarks_on_tokenizer(folder)
        packed = _packed_layers(weights_of(model))
        _layers_of_adapters(model)
        if self._bits == 16:
            self._refuse_grid_options(effective=_ON_CODES if packed else ())
        for encoding in (self._encoding(bits) for bits in {self._bits, self.head_bits, self.embedding_bits}):
            if encoding is not None and self._bits < 16:
                refuse(slow_encoding(encoding, self._accuracy(target), target.short_name))
        for module, linear in packed.items():
            if not any(fnmatch.fnmatchcase(module, pattern) for pattern in self.modules_to_not_convert):
                self._check_codes(linear, target)

    def _check_names(self) -> None:
        """Refuse a file's name that is none, and settings of generation that nobody would read."""
        if not re.fullmatch(r"[\w.-]+\.onnx", self.filename):
            raise ColdpressError(f"filename: '{self.filename}' is no name of an ONNX file", hint="such as text.onnx")
        if self.search and not self.use_ort_genai:
            raise ColdpressError("search has no effect without use_ort_genai", hint="leave one of them out")
        for name in self.search:
            if name not in SEARCH_KEYS:
                raise ColdpressError(f"search: there is no '{name}'", hint=did_you_mean(name, SEARCH_KEYS))

    def _require_effect(self, exporter: str, folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if settings.get("is_encoder_decoder") and self.filename != Press.filename:
            raise ColdpressError(
                "filename has no effect on this model, whose graphs are encoder.onnx and decoder.onnx",
                hint="leave it out",
            )
        for name in ("hidden_states", "search"):
            if exporter == TORCH_EXPORT and getattr(self, name):
                what = "whose answers onnxruntime-genai does not generate"
                raise ColdpressError(f"{name} has no effect on this model, {what}", hint="leave it out")
        if exporter == TORCH_EXPORT and self.logits is not None:
            raise ColdpressError(
                f"logits: {self.logits} has no effect on this model, which does not generate", hint="leave it out"
            )

    def _require_speculation(self) -> None:
        """Refuse a graph for speculation where nothing would speculate with it."""
        if not self.use_ort_genai:
            raise ColdpressError(
                "logits: speculation has no effect without use_ort_genai, as genai_config.json turns it on",
                hint="use --logits all for a runtime of your own",
            )
        if _genai_version() < (0, 18):
            raise ColdpressError(
                f"onnxruntime-genai {installed_version('onnxruntime-genai')} opens no configuration with speculation",
                hint="pip install 'onnxruntime-genai>=0.18'",
            )

    def foretold(self, model: Model | Planned) -> Planned:
        return Planned("onnx", replace(model.provenance, precision=self.precision))

    @classmethod
    def started_early(cls) -> AbstractContextManager[None]:
        from coldpress.graphs.building import started_early

        return started_early()

    def _check_codes(self, linear: PackedLinear, target: Target) -> None:
        """Refuse codes that no kernel reads, or none fast."""
        grid, module = linear.grid, linear.module
        try:
            encoding = Encoding(grid.bits, grid.block_size, grid.symmetric)
            refuse(slow_encoding(encoding, self._accuracy(target), target.short_name))
        except ColdpressError as error:
            raise ColdpressError(
                f"'{module}' of the checkpoint: {error.message}",
                hint=f"{error.hint}; --modules_to_not_convert '{module}' dequantizes it",
            ) from error

    def _refuse_grid_options(self, effective: tuple[str, ...]) -> None:
        """Options that shape a grid have no effect on floats, so they are not taken in silence."""
        for one in fields(self):
            if one.name in set(_GRID_OPTIONS) - set(effective) and getattr(self, one.name) != one.default:
                raise ColdpressError(
                    f"{one.name} has no effect with precision {self.precision}, which keeps weights float",
                    hint=f"leave out --{one.name}, or use --precision int4 or int8",
                )

    def run(self, model: Model, ctx: Context) -> Model:
        from coldpress.graphs.building import begun
        from coldpress.graphs.stream import fill, lattices_in
        from coldpress.models.lattices import remarks_on_lattices
        from coldpress.models.packed.spans import plain_tensors

        started = time.perf_counter()
        ctx.progress("capturing the graph", 0, 1)
        base, adapters = adapter_folder.base_of(model.path), _layers_of_adapters(model)
        exporter = chosen(base, self.exporter)
        require_captured(base, exporter, trust_remote_code=self.trust_remote_code)
        slots = sorted({module for layers in adapters.values() for module in layers})
        asked = {**self.request(ctx.target), "exporter": exporter, "slots": slots}
        asked["precision"]["overrides"] += self._promoted(base)
        if exporter == TORCH_EXPORT:  # such a model does not generate
            asked |= {"genai": False, "logits": "all"}
        with begun(base, ctx.scratch, asked) as graph:
            remarks = _remarks_on_tokenizer(base)
            layouts, built = graph.result()
        captured = time.perf_counter()
        errors: list[LayerError] = []
        for layout in layouts:
            errors += fill(
                layout,
                ctx.scratch,
                self._quantizer(),
                threads=ctx.target.thread_count,
                progress=lambda done, total: ctx.progress("pressing weights", done, total),
            )
        known, pressed = model.provenance, time.perf_counter()
        where = lattices_in(layouts)
        shutil.rmtree(ctx.scratch / "capture")  # weights that were computed are in there
        copy_settings(base, ctx.scratch)
        layers = tuple(self._quantized(error, *where.get(error.name, (False, None))) for error in errors)
        weights = sum(math.prod(span.shape) for span in plain_tensors(base).values())
        provenance = replace(
            known,
            source=replace(known.source, architecture=built.architecture, weights=weights),
            precision=self.precision,
            layers=layers,
            adapters=_write_adapters(adapters, ctx.scratch, self.filename) if adapters else known.adapters,
            timings=(
                Timing("capture the graph", captured - started),
                Timing("press the weights", pressed - captured),
            ),
        )
        rounded = [layer for layer in layers if layer.algorithm != AS_STORED]
        told = (*built.remarks, *remarks, *remarks_on_lattices(rounded))
        return Model(ctx.scratch, "onnx", "", provenance.remarked(*told))

    @property
    def _bits(self) -> int:
        return {"int4": 4, "int8": 8}.get(self.precision, 16)

    def _accuracy(self, target: Target) -> int:
        if self.accuracy_level is not None:
            return self.accuracy_level
        return 4 if target.short_name == "cpu" else 0

    def _encoding(self, bits: int) -> Encoding | None:
        symmetric = bits == 8 if self.symmetric is None else self.symmetric
        return Encoding(bits, self.block_size, symmetric) if bits < 16 else None

    def request(self, target: Target) -> dict[str, Any]:
        """What the graph worker is asked for: provider, float type, and the encoding of each kind of weight."""
        quantized = self._bits < 16
        gpu = target.short_name != "cpu"
        dtype = _FLOATS.get(self.precision, "float16" if gpu else "float32")
        chosen = replace(self, symmetric=True) if gpu and self.symmetric is None else self
        roles = {
            "linear": self._bits,
            "head": max(self._bits, self.head_bits),
            "embedding": max(self._bits, self.embedding_bits),
        }
        encodings = {role: chosen._encoding(bits) if quantized else None for role, bits in roles.items()}
        return {
            "provider": target.short_name,
            "dtype": dtype,
            "precision": {
                "dtype": dtype,
                **{role: asdict(encoding) if encoding else None for role, encoding in encodings.items()},
                "accuracy_level": self._accuracy(target),
                "scale_dtype": (self.scale_dtype or "float16") if dtype == "float32" else dtype,
                "overrides": [(pattern, None) for pattern in self.modules_to_not_convert],
            },
            "logits": self.logits or ("last" if self.use_ort_genai and _takes_last_logits() else "all"),
            "genai": self.use_ort_genai,
            "hidden_states": self.hidden_states,
            "filename": self.filename,
            "search": self.search,
            "trust_remote_code": self.trust_remote_code,
        }

    def _promoted(self, base: Path) -> list[tuple[str, Any]]:
        """Globs over the layers that get 8 bits by their places, with their encoding."""
        if self.promote is None:
            return []
        from coldpress.calibration.module_grids import promoting_globs

        settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
        settings = {**settings, **(settings.get("text_config") or {})}
        count = next((settings[name] for name in _LAYERS if name in settings), 0)
        if not count:
            raise ColdpressError(
                "promote has no effect here: config.json tells no number of layers",
                hint="leave promote out",
            )
        encoding = self._encoding(8)
        assert encoding is not None
        return [(glob, asdict(encoding)) for glob in promoting_globs(self.promote, int(count))]

    def _quantizer(self) -> Callable[..., Any]:
        if self.algorithm == "rtn":
            from coldpress.quant.rtn import rtn

            return rtn
        from coldpress.quant.kquant import kquant

        return kquant

    def _quantized(self, error: LayerError, on_lattice: bool, lattice: LatticeRecord | None) -> QuantizedLayer:
        algorithm = AS_STORED if error.was_stored else self.algorithm
        return QuantizedLayer(
            error.name,
            error.role,
            **asdict(error.encoding),
            algorithm=algorithm,
            relative_error=error.relative_error,
            bytes=error.bytes,
            on_lattice=on_lattice,
            lattice=lattice,
        )


def _remarks_on_tokenizer(base: Path) -> list[str]:
    """Those of `check_tokenizer`; the memory of the vocabulary, more than that of the chunks of weights, is given back
    at once."""
    remarks = check_tokenizer(base)
    heap.give_back()
    return remarks


def _packed_layers(weights: Path | None) -> dict[str, PackedLinear]:
    """The quantized layers and embeddings of a folder by name; none are known where there is no folder yet."""
    from coldpress.models.packed import embedding
    from coldpress.models.packed.folder import read_packed

    return {} if weights is None else {**read_packed(weights), **embedding.read(weights)}


def _layers_of_adapters(model: Model | Planned) -> dict[str, dict[str, LowRank]]:
    """What each adapter of a model adds to the layers of its base, by the adapter's name; all of it checked."""
    from coldpress.models import peft
    from coldpress.models.adapter_base import Base, on_base

    folders, base = (
        adapters_of(model),
        weights_of(model) or settings_of(model),
    )  # on other grids, layers have their shapes
    if not folders or base is None:
        return {}
    names = model.provenance.attached or tuple(folders)
    checked = Base.read(base)
    return {name: on_base(peft.read(path), checked) for name, path in zip(names, folders.values(), strict=True)}


def _write_adapters(
    adapters: Mapping[str, Mapping[str, LowRank]], folder: Path, graph: str
) -> tuple[WrittenAdapter, ...]:
    """An adapter file for each adapter beside the graph that has the slots; what there is to know of them."""
    from coldpress.graphs import adapter_file
    from coldpress.graphs.lora_metadata import read_slots

    slots, written = read_slots(folder / graph), []
    for name, layers in adapters.items():
        file = adapter_file.beside(folder, name, len(adapters))
        adapter_file.write(file, adapter_file.fill_slots(slots, layers))
        ranks = tuple(sorted({layer.rank for layer in layers.values()}))
        written.append(WrittenAdapter(name, file.name, ranks, len(layers), file.stat().st_size))
    return tuple(written)


def _takes_last_logits() -> bool:
    """Whether the installed onnxruntime-genai runs graphs that give logits for the last position only: from 0.12 on."""
    return _genai_version() >= (0, 12)


def _genai_version() -> tuple[int, ...]:
    return tuple(int(number) for number in (installed_version("onnxruntime-genai") or "0").split(".")[:2])


def copy_settings(folder: Path, output: Path) -> None:
    """Copy what makes a model's inputs.

    A model for onnxruntime-genai has its tokenizer already, in a form of its own.
    """
    for name in ("preprocessor_config.json",) if (output / "genai_config.json").exists() else _SETTINGS:
        if (folder / name).exists():
            shutil.copyfile(folder / name, output / name)
