"""An adapter added to the weights of its base, one layer in memory at a time; quantized layers are rounded again on
their own grid.

PEFT does the sums, for every kind of adapter that it can merge: the network is built without memory, its adapter with,
and each layer gets its weights for as long as it is merged. What shares a tensor in the base and is not the same
afterwards has one of its own, as in PEFT.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.adapter_base import EMBEDDINGS, more_tokens
from coldpress.models.packed.awq import METHOD as AWQ
from coldpress.models.packed.folder import quantization_config, read_packed
from coldpress.models.packed.gptq import METHOD as GPTQ
from coldpress.models.packed.linear import PackedLinear
from coldpress.models.quantized_folder import LayerFiles, assemble, packed_tensors
from coldpress.models.weight_files import EMBEDDING_CODES
from coldpress.networks.adapted import Adapted
from coldpress.networks.dense import Blueprint
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.kquant import kquant
from coldpress.tune.merge_whole import merge_whole, needs_whole, take_tokenizer

#: types, those that hold a sum least closely first -> the precision whose limits hold for them
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp32"}
_SCALES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


@dataclass(frozen=True)
class Merged:
    """How many ``layers`` changed, and by how much rounding changed each of them once more, relatively, where it was
    rounded.

    ``precision``: that by whose limits the result is to be compared with PEFT's network.
    """

    layers: int
    precision: str
    errors: Mapping[str, float] = field(default_factory=dict)


def merge(base: Path, adapter: Path, output: Path, progress: Any, trust_remote_code: bool = False) -> Merged:
    """Write ``base`` with ``adapter`` in its weights to the folder ``output``, in the format and types of the base."""
    if needs_whole(base, adapter):
        return Merged(1, _PRECISIONS[merge_whole(base, adapter, output, trust_remote_code)])
    return Merge(base, adapter, trust_remote_code).write(output, progress)


class Merge:
    """The base in folder ``base`` with the adapter in folder ``adapter``."""

    def __init__(self, base: Path, adapter: Path, trust_remote_code: bool = False):
        plan = Blueprint.of(base, trust_remote_code)
        self.base, self.adapter = base, adapter
        self._shards, self._names, self._tied = plan.shards, plan.names, plan.tied
        self._adapted = Adapted(plan.network, adapter, plan.tied)
        self._replaced = self._adapted.replaced()
        self._check_shapes()
        self._more_tokens = more_tokens(adapter, base)
        rows = plan.network.config.get_text_config().vocab_size
        if self._more_tokens and max(self._more_tokens.values()) >= rows:
            token = max(self._more_tokens, key=self._more_tokens.__getitem__)
            raise ColdpressError(
                f"the tokenizer of the adapter {adapter} has the token '{token}' with the number"
                f" {self._more_tokens[token]}, the merged model {rows} tokens: the adapter does not bring the"
                " embeddings of its new ones",
                hint="save it with save_embedding_layers=True",
            )
        self._packed = read_packed(base)
        self._grids = _grids(self._packed, str((quantization_config(base) or {}).get("quant_method")))
        self._errors: dict[str, float] = {}
        self._types: set[str] = set()

    def write(self, output: Path, progress: Any) -> Merged:
        """Write the merged checkpoint to the folder ``output``, in the format and types of the base."""
        scratch = output / ".merging"
        scratch.mkdir()
        files = LayerFiles(scratch)
        shared, written = self._changes(files, progress)
        untied = self._untie(shared)
        written |= self._put(files, shared)
        for module in self._packed.keys() - written:
            files.put(module, self._as_it_was(module), [])
        form = {GPTQ: GPTQ, AWQ: AWQ}.get(self._method, "compressed-tensors")
        assemble(self.base, files, sorted(written | self._packed.keys()), self._grids, form, output)
        shutil.rmtree(scratch)
        self._finish(output, untied, shared)
        return Merged(len(self._adapted.wrappers()), self._precision, self._errors)

    @property
    def _precision(self) -> str:
        if self._errors:
            return "int8" if min(self._grids[name].bits for name in self._errors) >= 8 else "int4"
        return _PRECISIONS[min(self._types, key=list(_PRECISIONS).index, default="float32")]

    def _check_shapes(self) -> None:
        """Raise ColdpressError for a matrix that the base has for fewer tokens, and the adapter's file not at all."""
        for name, shape in self._adapted.missing().items():
            if (found := self._shards.shape(self._stored(name))) != shape:
                raise ColdpressError(
                    f"the adapter {self.adapter} is for a '{name}' {list(shape)}, that of {self.base} is {list(found)}",
                    hint=(
                        "was it trained on another model? With more tokens it has to have the embedding and the head,"
                        " too (modules_to_save, or save_embedding_layers=True)"
                    ),
                )

    @property
    def _method(self) -> str:
        return str((quantization_config(self.base) or {}).get("quant_method"))

    def _changes(self, files: LayerFiles, progress: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
        """Write what the adapter changes, layer by layer; gives what may share a tensor, unwritten, and the files'
        names."""
        wrappers = self._adapted.wrappers()
        shared: dict[str, torch.Tensor] = {}
        written: set[str] = set()
        others = dict(self._replaced)
        for place, wrapper in enumerate([*wrappers, None]):
            progress("merging", place, len(wrappers))
            tensors = others if wrapper is None else self._adapted.merged(wrapper, self._value)
            others = {name: tensor for name, tensor in others.items() if name not in tensors or wrapper is None}
            shared |= {name: tensors.pop(name) for name in list(tensors) if name in self._sharing}
            written |= self._put(files, tensors)
        return shared, written

    @property
    def _sharing(self) -> set[str]:
        return {*self._tied, *self._tied.values()}

    def _value(self, name: str) -> torch.Tensor:
        """A parameter of the base in float32, in memory of its own."""
        if name in self._replaced:
            return self._replaced[name].to(torch.float32, copy=True)
        return self._shards.tensor(self._stored(name)).to(torch.float32, copy=True)

    def _stored(self, name: str) -> str:
        """The tensor that a parameter is filled from: its own, or the one that it shares."""
        return self._names.get(name) or self._names[self._tied[name]]

    def _untie(self, shared: dict[str, torch.Tensor]) -> bool:
        """Complete what shares a tensor in the base and no longer can; True where there is such."""
        untied = False
        for name, other in self._tied.items():
            if not {name, other} & shared.keys():
                continue
            if name in shared and other in shared and torch.equal(shared[name], shared[other]):
                del shared[name]
                continue
            shared |= {one: self._value(one) for one in (name, other) if one not in shared and one not in self._names}
            untied = True
        return untied

    def _put(self, files: LayerFiles, tensors: Mapping[str, torch.Tensor]) -> set[str]:
        """Write parameters, those of a module into one file; gives the files' names, which are the modules'."""
        modules: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            module, _, local = self._names.get(name, name).rpartition(".")
            modules.setdefault(module, {})[local] = tensor
        for module, own in modules.items():
            found: dict[str, NDArray[Any]] = {}
            for local, tensor in own.items():
                found |= self._encode(module, local, tensor)
            files.put(module, found, [])
        return set(modules)

    def _encode(self, module: str, local: str, values: torch.Tensor) -> dict[str, NDArray[Any]]:
        """One tensor as the base stores it: in its type, or rounded again on the module's own grid."""
        key = f"{module}.{local}"
        if not torch.isfinite(values).all():
            raise ColdpressError(f"the merged '{key}' is not finite", exit_code=WORK_FAILED)
        if module not in self._packed or local != "weight":
            dtype = self._dtype(key)
            self._types.add(dtype)
            return {key: _stored_as(values, dtype)}
        weight = values.numpy()
        codes = kquant(weight, self._grids[module])
        rounded = dequantize(codes, weight.shape[1])
        self._errors[module] = float(np.linalg.norm(rounded - weight)) / max(float(np.linalg.norm(weight)), 1e-30)
        return self._encoded(module, codes)

    def _dtype(self, key: str) -> str:
        """The type of a stored tensor; that of the embedding for one that the base does not have."""
        known = self._shards.names()
        if key not in known or key in {f"{module}.weight" for module in self._packed}:
            key = next(name for name in known if name.removesuffix(".weight").endswith(EMBEDDINGS))
        return self._shards.dtype(key)

    def _as_it_was(self, name: str) -> dict[str, NDArray[Any]]:
        """A packed layer that nothing is added to: its codes, written once more, as one config says how all are
        packed."""
        linear, grid = self._packed[name], self._grids[name]
        codes = linear.rows_as_codes(0, linear.rows)
        if codes.zero_points is None and not grid.symmetric:
            codes.zero_points = np.full(codes.scales.shape, grid.middle, np.uint8)
        return self._encoded(name, Codes(codes.codes, codes.scales, codes.zero_points, grid))

    def _encoded(self, name: str, codes: Codes) -> dict[str, NDArray[Any]]:
        return packed_tensors(self._method, name, codes, self._packed[name].columns, codes.grid.scale_dtype)

    def _finish(self, output: Path, untied: bool, shared: Mapping[str, Any]) -> None:
        """What the config says of tied matrices and the vocabulary, its tokenizer, and the codes of an unchanged
        embedding."""
        file = output / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        for part in (config, config.get("text_config") or {}):
            if untied and ("tie_word_embeddings" in part or part is config):
                part["tie_word_embeddings"] = False
            if self._adapted.tokens is not None and "vocab_size" in part:
                part["vocab_size"] = self._adapted.tokens
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        if self._adapted.tokens is not None or self._more_tokens:
            take_tokenizer(self.adapter, output)
        is_same = not any(name.removesuffix(".weight").endswith(EMBEDDINGS) for name in shared)
        if (self.base / EMBEDDING_CODES).is_file() and is_same:
            shutil.copyfile(self.base / EMBEDDING_CODES, output / EMBEDDING_CODES)


def _grids(packed: Mapping[str, PackedLinear], method: str) -> dict[str, Grid]:
    """The grid of each packed layer, scales as they are stored; GPTQ's two versions cannot be mixed, so one decides for
    all."""
    grids = {name: replace(linear.grid, scale_dtype=_scale_dtype(linear)) for name, linear in packed.items()}
    if method == GPTQ and not all(grid.symmetric for grid in grids.values()):
        return {name: replace(grid, symmetric=False) for name, grid in grids.items()}
    return grids


def _scale_dtype(linear: Any) -> str:
    return _SCALES[linear.scales.dtype]


def _stored_as(values: torch.Tensor, dtype: str) -> NDArray[Any]:
    found = values.to(getattr(torch, dtype)).contiguous()
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16

        return found.view(torch.int16).numpy().view(bfloat16)
    return found.numpy()
