"""An adapter added to the weights of its base, one layer in memory at a time; quantized layers are rounded again on their own grid.

PEFT does the sums, for every kind of adapter that it can merge: the network is built without memory, its adapter with, and each layer
gets its weight for as long as it is merged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.networks.dense import Blueprint
from coldpress.networks.packed import PackedLinear, quantization_config, read_packed
from coldpress.networks.packed.awq import METHOD as AWQ
from coldpress.networks.packed.gptq import METHOD as GPTQ
from coldpress.networks.quantized_folder import LayerFiles, assemble, packed_tensors
from coldpress.networks.weight_files import EMBEDDING_CODES
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.kquant import kquant

_SCALES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


@dataclass(frozen=True)
class Merged:
    """How many ``layers`` changed, and by how much rounding changed each of them once more, relatively, where it was rounded."""

    layers: int
    errors: Mapping[str, float] = field(default_factory=dict)


class Merge:
    """The base in folder ``base`` with the adapter in folder ``adapter``."""

    def __init__(self, base: Path, adapter: Path, trust_remote_code: bool = False):
        plan = Blueprint.of(base, trust_remote_code)
        self.base, self._shards, self._names, self._tied = base, plan.shards, plan.names, plan.tied
        self._network = _with_adapter(plan.network, adapter)
        self._packed = read_packed(base)
        self._grids = _grids(self._packed, str((quantization_config(base) or {}).get("quant_method")))
        self._errors: dict[str, float] = {}

    def write(self, output: Path, progress: Any) -> Merged:
        """Write the merged checkpoint to the folder ``output``, in the format and types of the base."""
        scratch = output / ".merging"
        scratch.mkdir()
        files, written = LayerFiles(scratch), []
        changed = list(self._changed())
        for place, (name, module) in enumerate(changed):
            progress("merging", place, len(changed))
            files.put(name, self._merged(name, module), [])
            written.append(name)
        for module in self._packed.keys() - set(written):
            files.put(module, self._as_it_was(module), [])
            written.append(module)
        whole = self._saved_modules()
        if whole:
            files.put("modules_to_save", whole, [])
            written.append("modules_to_save")
        form = {GPTQ: GPTQ, AWQ: AWQ}.get(self._method, "compressed-tensors")
        assemble(self.base, files, written, self._grids, form, output)
        shutil.rmtree(scratch)
        self._finish(output, whole)
        progress("merging", len(changed), len(changed))
        return Merged(len(changed), self._errors)

    @property
    def _method(self) -> str:
        return str((quantization_config(self.base) or {}).get("quant_method"))

    def _changed(self) -> Iterator[tuple[str, Any]]:
        """Every layer that the adapter changes, by the name that it has in the checkpoint."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in self._network.named_modules():
            if isinstance(module, BaseTunerLayer):
                yield self._names[f"{name}.weight"].removesuffix(".weight"), module

    def _merged(self, name: str, module: Any) -> dict[str, NDArray[Any]]:
        """The tensors of one layer with its adapter added."""
        layer, key = module.get_base_layer(), f"{name}.weight"
        empty = layer.weight
        layer.weight = torch.nn.Parameter(self._shards.tensor(key).float(), requires_grad=False)
        try:
            with torch.no_grad():
                module.merge()
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise ColdpressError(
                f"PEFT cannot merge the adapter of '{name}': {error}", exit_code=WORK_FAILED
            ) from error
        values = layer.weight.detach()
        layer.weight = empty
        if not torch.isfinite(values).all():
            raise ColdpressError(f"the merged weights of '{name}' are not finite", exit_code=WORK_FAILED)
        if name not in self._packed:
            return {key: _stored_as(values, self._shards.dtype(key))}
        weight = values.numpy()
        codes = kquant(weight, self._grids[name])
        rounded = dequantize(codes, weight.shape[1])
        self._errors[name] = float(np.linalg.norm(rounded - weight)) / max(float(np.linalg.norm(weight)), 1e-30)
        return self._encoded(name, codes)

    def _as_it_was(self, name: str) -> dict[str, NDArray[Any]]:
        """A packed layer that nothing is added to: its codes, written once more, as one config says how all are packed."""
        linear, grid = self._packed[name], self._grids[name]
        codes = linear.rows_as_codes(0, linear.rows)
        if codes.zero_points is None and not grid.symmetric:
            codes.zero_points = np.full(codes.scales.shape, grid.middle, np.uint8)
        return self._encoded(name, Codes(codes.codes, codes.scales, codes.zero_points, grid))

    def _encoded(self, name: str, codes: Codes) -> dict[str, NDArray[Any]]:
        return packed_tensors(self._method, name, codes, self._packed[name].columns, codes.grid.scale_dtype)

    def _saved_modules(self) -> dict[str, NDArray[Any]]:
        """The tensors of modules that were trained whole; of two tied ones both, where only one was."""
        from peft.utils import ModulesToSaveWrapper

        found: dict[str, torch.Tensor] = {}
        for name, module in self._network.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                own = next(iter(module.modules_to_save.values()))
                found |= {f"{name}.{local}": tensor.detach() for local, tensor in own.named_parameters()}
        for name, other in self._tied.items():
            pair = {name, other}
            if len(pair & found.keys()) == 1:
                (missing,) = pair - found.keys()
                found[missing] = self._shards.tensor(self._names.get(other) or self._names[name])
        stored = {self._names.get(name, name): tensor for name, tensor in found.items()}
        kind = next((self._shards.dtype(key) for key in stored if key in self._shards.names()), "float32")
        return {key: _stored_as(tensor, kind) for key, tensor in stored.items()}

    def _finish(self, output: Path, whole: Mapping[str, Any]) -> None:
        """What the config says of tied matrices, and the codes of an embedding that stays what it was."""
        untied = [name for name, other in self._tied.items() if {name, other} <= whole.keys()]
        if untied:
            file = output / "config.json"
            config = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps({**config, "tie_word_embeddings": False}, indent=2), encoding="utf-8")
        if (self.base / EMBEDDING_CODES).is_file() and not whole:
            shutil.copyfile(self.base / EMBEDDING_CODES, output / EMBEDDING_CODES)


def _with_adapter(network: Any, adapter: Path) -> Any:
    """The network with PEFT's layers in it; ColdpressError for an adapter of another network."""
    from peft import PeftModel

    for module in network.modules():  # PEFT puts adapters where the weights are: on the CPU, where these take no memory
        for name, parameter in module.named_parameters(recurse=False):
            none = torch.zeros(1).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(none, requires_grad=False))
    try:
        wrapped = PeftModel.from_pretrained(network, str(adapter), low_cpu_mem_usage=True, torch_device="cpu")
    except (ValueError, RuntimeError, KeyError, OSError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ColdpressError(
            f"the adapter {adapter} cannot be put on its base: {reason}", hint="was it trained on another model?"
        ) from error
    return wrapped.get_base_model()


def _grids(packed: Mapping[str, PackedLinear], method: str) -> dict[str, Grid]:
    """The grid of each packed layer, scales as they are stored; GPTQ's two versions cannot be mixed, so one decides for all."""
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
