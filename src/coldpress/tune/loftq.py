"""LoftQ: a base rounded to 4 bits, and the adapter that makes up for what the rounding did, fitted to each other.

By turns the weight less the adapter is rounded, and the adapter becomes the best low-rank product for what is missing
(Li et al., https://arxiv.org/abs/2310.08659). Where the paper rounds to the quantiles of a normal distribution, we
round to the grid that ``quantize`` and the press use, so that the base is served with exactly the values that it was
trained with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coldpress.errors import ColdpressError
from coldpress.models.packed.linear import largest_block
from coldpress.models.quantized_folder import LayerFiles, assemble, packed_tensors
from coldpress.networks.dense import Blueprint
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.kquant import kquant
from coldpress.tune.adapters import linears_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_GROUP_SIZE = 32
_FORMAT = "compressed-tensors"
#: singular vectors that are looked at beyond those that are kept, and how often the search for them is refined
_MORE_VECTORS, _REFINEMENTS = 16, 4


def fit(wrapped: Any, source: Path, output: Path, iterations: int, dtype: torch.dtype) -> Path:
    """Round the base of a PEFT model, which has float32 weights, and set its adapter; the quantized folder is written
    to ``output``.

    The frozen weights are ``dtype`` afterwards.
    """
    if iterations < 1:
        raise ColdpressError(f"loftq_iter is {iterations}; at least 1 is needed")
    network = wrapped.get_base_model()
    kind = "bfloat16" if "bfloat16" in str(network.config.dtype) else "float16"
    modules = {name: module for name, module in network.named_modules() if not name.endswith(".base_layer")}
    with torch.no_grad():
        made = {
            name: _fitted(modules[name], _grid(name, modules[name], kind), iterations) for name in _linears(network)
        }
    _write(made, Blueprint.of(source).names, source, output)
    for parameter in network.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return output


def _linears(network: Any) -> list[str]:
    """The linear layers of the network by the names that they have without adapters."""
    own = (name for name in linears_of(network) if "lora_" not in name)
    return [name.replace(".base_layer", "") for name in own]


def _fitted(module: Any, grid: Grid, iterations: int) -> tuple[Codes, int]:
    """Round one layer and set its adapter, if it has one; its codes and the number of its inputs."""
    layer = module.base_layer if hasattr(module, "base_layer") else module
    weight = layer.weight.data.clone()
    columns = weight.shape[1]
    product = torch.zeros_like(weight)
    for _ in range(iterations):
        codes = kquant((weight - product).numpy(), grid)
        rounded = torch.from_numpy(dequantize(codes, columns))
        if module is layer:
            break
        product = _set_adapter(module, weight - rounded)
    layer.weight.data = rounded
    return codes, columns


def _set_adapter(module: Any, missing: torch.Tensor) -> torch.Tensor:
    """Give a module's adapter the low-rank product that is closest to ``missing``; returns that product."""
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    rank, scaling = down.shape[0], module.scaling["default"]
    kept = min(rank, *missing.shape)
    left, values, right = torch.svd_lowrank(missing, min(kept + _MORE_VECTORS, *missing.shape), _REFINEMENTS)
    root = values[:kept].sqrt() / abs(scaling) ** 0.5
    down.data.zero_()
    up.data.zero_()
    down.data[:kept] = root[:, None] * right[:, :kept].T
    up.data[:, :kept] = left[:, :kept] * root * (1 if scaling > 0 else -1)
    product: torch.Tensor = scaling * up @ down
    return product


def _grid(name: str, module: Any, scale_dtype: str) -> Grid:
    columns = module.in_features
    size = _GROUP_SIZE if columns % _GROUP_SIZE == 0 else largest_block(columns)
    if size is None:
        raise ColdpressError(
            f"'{name}' has {columns} inputs, which no group of 16 to 256 divides", hint="use --method lora"
        )
    return Grid(4, size, False, scale_dtype)


def _write(made: Mapping[str, tuple[Codes, int]], stored: Mapping[str, str], source: Path, output: Path) -> None:
    names = {name: stored[f"{name}.weight"].removesuffix(".weight") for name in made}
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    layers = output.with_name("layers")
    layers.mkdir(exist_ok=True)
    files = LayerFiles(layers)
    for name, (codes, columns) in made.items():
        files.put(names[name], packed_tensors(_FORMAT, names[name], codes, columns, codes.grid.scale_dtype), [])
    grids = {names[name]: codes.grid for name, (codes, _) in made.items()}
    assemble(source, files, list(grids), grids, _FORMAT, output)
    shutil.rmtree(layers)
