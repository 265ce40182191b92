"""Train an adapter on a Hugging Face model, whose own weights stay as they are, quantized ones too.

The result is a base and its adapter: ``model/`` holds the files of the base, ``adapter/`` a folder of PEFT. On a
quantized folder the frozen network has the values that the codes of this folder stand for, so that training and serving
see the same base. Rows are packed into sequences without padding (tune/packing.py), and logits never exist as a whole
(tune/loss.py). Weights of the base and products are bfloat16 where the device multiplies in it; the adapter and the
moments of its optimizer are float32.

Methods: ``lora`` (https://arxiv.org/abs/2106.09685), ``dora`` (2402.09353), ``loha`` (2108.06098), ``lokr``
(2309.14859); ``qlora`` (2305.14314), on a base that bitsandbytes rounds to 4 bits for the training; ``loftq``
(2310.08659), which quantizes the base to our own int4 grid and begins with the adapter that makes up most for it.

Checkpoints lie in the cache. A run that was stopped goes on from the last one, to the same result.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of, weights_of
from coldpress.models.provenance import Provenance, Tuning
from coldpress.parts import Context, DataSource, Pass, option
from coldpress.target import Target

if TYPE_CHECKING:
    from coldpress.tune.adapters import Adapter
    from coldpress.tune.arguments import Arguments

_log = logging.getLogger(__name__)

METHODS = ("lora", "qlora", "dora", "loha", "lokr", "loftq")
DTYPES = ("bfloat16", "float16", "float32")
#: the base of an adapter that was trained on a model of this machine, as seen from the adapter's folder
_BASE = "../model"
#: options that some methods have, and which
_OF_METHODS = {
    "double_quant": ("qlora",),
    "quant_type": ("qlora",),
    "loftq_iter": ("loftq",),
    "rank_dropout": ("loha", "lokr"),
    "module_dropout": ("loha", "lokr"),
    "decompose_both": ("lokr",),
    "decompose_factor": ("lokr",),
    "rank_dropout_scale": ("lokr",),
}
#: those of them that are fields of PEFT's configuration, too
_OF_PEFT = ("rank_dropout", "module_dropout", "decompose_both", "decompose_factor", "rank_dropout_scale")


@dataclass(frozen=True)
class Lora(Pass):
    """Train an adapter on a Hugging Face model, whose own weights stay as they are, quantized ones too."""

    accepts: ClassVar[tuple[str, ...]] = ("hf",)
    produces: ClassVar[str] = "adapter"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "peft", "accelerate")
    version: ClassVar[int] = 2

    method: str = option("what is trained", "lora", METHODS)
    lora_r: int = option("rank of the adapter; its file and its time grow with it", 16)
    lora_alpha: float = option("the adapter is scaled by lora_alpha / lora_r", 16.0)
    lora_dropout: float | None = option(
        "share of an adapter's inputs left out at random; default 0.05 where it applies", None
    )
    target_modules: tuple[str, ...] = option("linear layers that get an adapter; default: all of the decoder", ())
    modules_to_save: tuple[str, ...] = option("modules that are trained whole, beside the adapter", ())
    train_data: DataSource | None = option("rows to train on: data of the kind text_corpus", None)
    eval_data: DataSource | None = option("rows to measure the loss on, before and after", None)
    eval_dataset_size: float | None = option(
        "rows held out instead, as a share or a number; default: a tenth, at most 64, of 20 rows or more", None
    )
    packing: bool = option("put several rows into one sequence, where the architecture keeps them apart", True)
    training_args: dict[str, Any] = option("fields of TrainingArguments of transformers, such as max_steps", dict)
    torch_dtype: str | None = option("type of products; default: bfloat16 where the device has it", None, DTYPES)
    double_quant: bool = option("with qlora: quantize the scales, too", True)
    quant_type: str = option("with qlora: kind of 4-bit numbers", "nf4", ("nf4", "fp4"))
    loftq_iter: int = option("with loftq: times that rounding and adapter are fitted to each other", 1)
    rank_dropout: float = option("with loha, lokr: share of ranks left out at random", 0.0)
    module_dropout: float = option("with loha, lokr: share of modules left out at random", 0.0)
    decompose_both: bool = option("with lokr: write the left factor as a product, too", False)
    decompose_factor: int = option("with lokr: size of the left factor; -1: about the square root", -1)
    rank_dropout_scale: bool = option("with lokr: scale what rank_dropout leaves", False)
    trust_remote_code: bool = option("run model code that comes with the model", False)

    def check(self, model: Model | Planned, target: Target) -> None:
        from coldpress.tune.network import check_bitsandbytes

        for name, methods in _OF_METHODS.items():
            default = next(one.default for one in fields(self) if one.name == name)
            if self.method not in methods and getattr(self, name) != default:
                raise ColdpressError(f"{name} has no effect with {self.method}", hint=f"use {' or '.join(methods)}")
        if self.train_data is None:
            raise ColdpressError("there is nothing to train on", hint="name it with train_data, or --data_files")
        self.adapter()
        self.arguments()
        self._check_base(model)
        if self.method == "qlora":
            check_bitsandbytes()
        for name in ("train_data", "eval_data"):
            source = getattr(self, name)
            if source is not None:
                source.make(name).check(model)
        if (folder := settings_of(model)) is not None:
            self._check_targets(folder)
            if remark := self._remark_on_template(folder):
                _log.warning(remark)

    def _check_targets(self, folder: Path) -> None:
        """Refuse modules that the model does not have; building it to know takes seconds, so only where it seems so."""
        from coldpress.tune.adapters import check_targets

        if self.target_modules and (folder / "config.json").is_file():
            check_targets(folder, self.target_modules, self.trust_remote_code)

    def _remark_on_template(self, folder: Path) -> str | None:
        from coldpress.tune.own_template import remark_on_template

        data = self.train_data
        return remark_on_template(folder, data.parameters) if data and data.type == "text_corpus" else None

    def foretold(self, model: Model | Planned) -> Planned:
        weights = None if self.method == "loftq" else weights_of(model)
        return Planned("adapter", model.provenance, settings_of(model), weights)

    def _check_base(self, model: Model | Planned) -> None:
        from coldpress.models.packed.folder import quantization_config

        folder = weights_of(model)
        if self.method in ("qlora", "loftq") and folder is not None and quantization_config(folder) is not None:
            raise ColdpressError(
                f"{folder} is quantized already, and {self.method} quantizes the base itself",
                hint="use --method lora, which trains on the codes that are there, or the float model",
            )

    def run(self, model: Model, ctx: Context) -> Model:
        import torch

        torch.set_num_threads(ctx.target.thread_count)
        return _Run(self, model, ctx).run()

    def adapter(self) -> Adapter:
        """What is trained; ColdpressError for numbers that make no sense."""
        from coldpress.tune.adapters import Adapter

        more = {name: getattr(self, name) for name in _OF_PEFT if self.method in _OF_METHODS[name]}
        return Adapter(
            method=self.method,
            rank=self.lora_r,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            target_modules=self.target_modules,
            modules_to_save=self.modules_to_save,
            more=more,
        )

    def arguments(self) -> Arguments:
        """How it is trained; ColdpressError for arguments that do not exist."""
        from coldpress.tune.arguments import read_arguments

        read = read_arguments(self.training_args)
        if self.torch_dtype and read.dtype and self.torch_dtype != read.dtype:
            raise ColdpressError(
                f"torch_dtype {self.torch_dtype} and training_args ask for different types",
                hint="leave one of them out",
            )
        return read


class _Run:
    """One run of the pass: rows, network, trainer, and what is told of them."""

    def __init__(self, request: Lora, model: Model, ctx: Context):
        import torch

        from coldpress.tune.network import compute_dtype

        self.request, self.model, self.ctx = request, model, ctx
        self.arguments = request.arguments()
        self.device = "cuda" if ctx.target.device == "gpu" and torch.cuda.is_available() else "cpu"
        self.dtype = compute_dtype(request.torch_dtype or self.arguments.dtype, self.device)
        self.seed = int(self.arguments.given.get("seed", ctx.seed))
        self.rows, self.held_out = self._rows()

    def _rows(self) -> tuple[Any, Any]:
        from coldpress.data.batches.calibration import positions
        from coldpress.tune.rows import HeldOut, Rows, read_rows, split

        request, most = self.request, positions(self.model.path)
        wanted = HeldOut(request.eval_dataset_size, request.eval_data, self.seed)
        assert request.train_data is not None
        rows = read_rows(request.train_data, self.model, self.ctx, most)
        if request.eval_data is not None:
            return rows, read_rows(request.eval_data, self.model, self.ctx, most)
        return split(rows, wanted) if wanted.count(len(rows)) else (rows, Rows([]))

    def run(self) -> Model:
        from coldpress.models import adapter_folder
        from coldpress.tune.adapters import save
        from coldpress.tune.processes import shared_folder
        from coldpress.tune.training import Setting, Training

        setting = Setting(self.device, self.dtype, self.seed, self.request.packing)
        with self.ctx.kept("tune", self._facts()) as own:
            with shared_folder(own, self.device == "cpu") as folder:
                base, network = self._network(folder)
                training = Training(network, self.arguments, setting, (self.rows, self.held_out), folder)
                tuning = training.run(self.request.method, self.ctx.progress)
                trained = own / "adapter"  # the same of every process
                save(training.model, trained, self.model.hub_id or _BASE)
                adapter_folder.write(self.ctx.scratch, base, {"adapter": trained})
            shutil.rmtree(own)
        return Model(self.ctx.scratch, "adapter", "", self._provenance(tuning, training.remarks))

    def _network(self, folder: Path) -> tuple[Path, Any]:
        """The folder of the base, and the network with the adapter on it, as PEFT wraps it."""
        import torch
        from transformers import set_seed

        from coldpress.tune import loftq
        from coldpress.tune.network import load_base, load_in_4_bits

        set_seed(self.seed)
        request, path, adapter = self.request, self.model.path, self.request.adapter()
        if request.method == "qlora":
            numbers = (request.quant_type, request.double_quant)
            network = load_in_4_bits(path, self.dtype, self.device, numbers, request.trust_remote_code)
            return path, adapter.put_on(network)
        if request.method == "loftq":
            wrapped = adapter.put_on(load_base(path, torch.float32, request.trust_remote_code))
            return loftq.fit(wrapped, path, folder / "base", request.loftq_iter, self.dtype), wrapped
        return path, adapter.put_on(load_base(path, self.dtype, request.trust_remote_code))

    def _facts(self) -> dict[str, Any]:
        """All that decides the result: checkpoints of a run that was stopped serve only the same request."""
        request = {
            name: value for name, value in asdict(self.request).items() if name not in ("train_data", "eval_data")
        }
        return {
            "pass": [self.request.version, request],
            "model": self.model.key,
            "rows": [self.rows.digest, self.held_out.digest],
            "device": [self.device, str(self.dtype)],
            "seed": self.seed,
        }

    def _provenance(self, tuning: Tuning, remarks: Sequence[str]) -> Provenance:
        if cut := tuning.truncated_rows:
            remarks = [*remarks, f"{cut} rows were longer than the model or max_seq_len allows, and lost their end."]
        if tuning.unscored_rows:
            remarks = [*remarks, f"{tuning.unscored_rows} rows had no token to predict, and were left out."]
        if remark := self.request._remark_on_template(self.model.path):
            remarks = [*remarks, f"{remark[0].upper()}{remark[1:]}."]
        return replace(self.model.provenance, tuning=tuning).remarked(*self.arguments.remarks, *remarks)
