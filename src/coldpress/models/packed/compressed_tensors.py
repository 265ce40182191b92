"""The formats of compressed-tensors that plain transformers and vLLM load: ``pack-quantized`` is written and read,
integers read.

A module has ``weight_packed`` int32 ``[rows, ceil(K * bits / 32)]``, ``weight_scale [rows, groups]``, ``weight_shape``
int64 ``[2]`` and, on an asymmetric grid, ``weight_zero_point`` int32 ``[ceil(rows * bits / 32), groups]``, packed along
the rows (https://github.com/vllm-project/compressed-tensors). The numbers are signed, ``code - 2**(bits - 1)``, but are
packed with that offset added again, so the words hold our codes and zero points as they are. Negative scales are
allowed. Up to version 0.17 a word of 3-bit codes held ten of them and two bits of nothing; since 0.18 no bit is lost.
Both are read, the second is written.

Where a module is stored as ``int-quantized`` (or ``naive-quantized``), alone or beside packed ones
(``mixed-precision``), its ``weight`` is int8 ``[rows, K]``, one signed number for each weight whatever its bits, with a
``weight_scale`` for the whole, for each row or for groups, and a ``weight_zero_point`` of the same shape on an
asymmetric grid.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Span
from coldpress.models.packed.linear import PackedLinear, StoredRows, groups_out_of_order
from coldpress.models.packed.patterns import is_expert, patterns_for
from coldpress.models.packed.words import pack_words, unpack_across, unpack_loose_words, unpack_words, words_for
from coldpress.quant.grid import Bytes, Codes, Grid

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_INTEGERS = ("int-quantized", "naive-quantized")


def tensors_of(module: str, codes: Codes, columns: int, scale_dtype: str = "float32") -> dict[str, NDArray[Any]]:
    """The tensors of one linear layer with ``columns`` inputs, by their names in the checkpoint.

    ``scale_dtype`` (float16, bfloat16, float32) should be the ``dtype`` of config.json: transformers casts the scales
    to that and multiplies in it. Raises ColdpressError where the last block is padded, or a scale overflows.
    """
    flat = unpadded(module, codes, columns, METHOD)
    bits = codes.grid.bits
    tensors: dict[str, NDArray[Any]] = {
        f"{module}.weight_packed": pack_words(flat, bits),
        f"{module}.weight_scale": stored_scales(module, codes, scale_dtype),
        f"{module}.weight_shape": np.array(flat.shape, np.int64),
    }
    if codes.zero_points is not None:
        tensors[f"{module}.weight_zero_point"] = np.ascontiguousarray(pack_words(codes.zero_points.T, bits).T)
    return tensors


def unpadded(module: str, codes: Codes, columns: int, method: str) -> Bytes:
    """The codes ``[rows, columns]``; ColdpressError where blocks do not divide the row, which ``method`` cannot say."""
    rows, blocks, block_size = codes.codes.shape
    if blocks * block_size != columns:
        fitting = [size for size in (128, 64, 32, 16) if columns % size == 0]
        raise ColdpressError(
            f"'{module}' has {columns} inputs, which groups of {block_size} do not divide; {method} cannot pad them",
            hint=f"use a group size of {fitting[0]}" if fitting else "leave this module unquantized",
        )
    return codes.codes.reshape(rows, columns)


def stored_scales(module: str, codes: Codes, dtype: str) -> NDArray[Any]:
    """The scales ``[rows, groups]`` rounded to ``dtype``; ColdpressError for those that are too large for it."""
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16

        return codes.scales.astype(bfloat16)
    with np.errstate(over="ignore"):
        scales = codes.scales.astype(dtype)
    if not np.isfinite(scales).all():
        raise ColdpressError(f"'{module}' has a scale that {dtype} cannot hold", hint="store the scales as float32")
    return scales


def config_of(grids: Mapping[str, Grid], ignore: Sequence[str] = ()) -> dict[str, Any]:
    """The ``quantization_config`` for config.json: the grid of each quantized module, and the linear ones left alone.

    One grid targets every ``Linear`` that is not in ``ignore``; of several, each targets its modules by name.
    A single asymmetric grid gets ``dequantize``, without which transformers 5.23 refuses its zero points; with
    several grids transformers would apply the first to all, so these load with ``loading.register`` only. So do
    experts with zero points or on several grids, all of which it unpacks by the first that names experts: of several,
    that with most bits comes first, since longer words would be misread in silence, and shorter ones are refused.
    """
    modules: dict[Grid, list[str]] = defaultdict(list)
    for module, grid in grids.items():
        modules[grid].append(module)
    ranked = [grid for grid, _ in Counter(grids.values()).most_common()]
    if len({grid for module, grid in grids.items() if is_expert(module)}) > 1:
        ranked.sort(key=lambda grid: -grid.bits)
    groups = {
        f"group_{index}": {
            "targets": ["Linear"] if len(ranked) == 1 else _targets(modules[grid], grids),
            "weights": _weights(grid),
            "input_activations": None,
            "output_activations": None,
        }
        for index, grid in enumerate(ranked)
    }
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        **({"dequantize": True} if len(ranked) == 1 and not ranked[0].symmetric else {}),
    }


def _targets(modules: Sequence[str], grids: Mapping[str, Grid]) -> list[str]:
    own = set(modules)
    return [f"re:{pattern}" for pattern in patterns_for(modules, [name for name in grids if name not in own])]


def _weights(grid: Grid) -> dict[str, Any]:
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "group",
        "group_size": grid.block_size,
        "dynamic": False,
    }


@dataclass(frozen=True, eq=False)
class CompressedLinear(PackedLinear):
    """A linear layer of a ``pack-quantized`` checkpoint; ``zero_points`` is None where the scheme is symmetric."""

    words: Span
    zero_points: Span | None

    @property
    def symmetric(self) -> bool:
        return self.zero_points is None

    @property
    def _is_dense(self) -> bool:
        """Whether codes may cross words; told by the weight, since few rows of zero points take as many words."""
        return self.words.shape[1] == words_for(self.columns, self.bits)

    def stored(self, start: int, stop: int) -> StoredRows:
        unpack = unpack_words if self._is_dense else unpack_loose_words
        codes = unpack(self.words.view()[start:stop], self.bits, self.columns)
        return StoredRows(codes, self.scales.rows(start, stop), self._zeros(start, stop))

    def _zeros(self, start: int, stop: int) -> Bytes | None:
        if self.zero_points is None:
            return None
        view = self.zero_points.view()
        if self.zero_points.dtype == "I8":  # versions before 0.9 did not pack them
            return (view[start:stop] + (1 << (self.bits - 1))).astype(np.uint8)
        if self._is_dense:
            return unpack_across(view.T, self.bits, start, stop)
        return unpack_loose_words(view.T, self.bits, self.rows)[:, start:stop].T


@dataclass(frozen=True, eq=False)
class IntegerLinear(PackedLinear):
    """A linear layer whose ``weight`` is stored as int8; ``zero_points`` is None where the scheme is symmetric."""

    integers: Span
    zero_points: Span | None

    @property
    def symmetric(self) -> bool:
        return self.zero_points is None

    def stored(self, start: int, stop: int) -> StoredRows:
        zeros = None if self.zero_points is None else self._codes(self.zero_points, start, stop)
        return StoredRows(self._codes(self.integers, start, stop), self.scales.rows(start, stop), zeros)

    def _codes(self, span: Span, start: int, stop: int) -> Bytes:
        """Signed numbers as codes, which begin at 0."""
        return (span.view()[start:stop].astype(np.int16) + (1 << (self.bits - 1))).astype(np.uint8)


def linears_in(tensors: Mapping[str, Span], config: Mapping[str, Any]) -> dict[str, PackedLinear]:
    """The quantized linear layers among ``tensors``, which ``config`` (the ``quantization_config``) describes."""
    packed = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    integers = [
        name.removesuffix(".weight")
        for name, span in tensors.items()
        if name.endswith(".weight") and span.dtype == "I8"
    ]
    if config.get("format") not in (FORMAT, *_INTEGERS) and not packed and not integers:
        raise ColdpressError(
            f"this checkpoint is compressed-tensors '{config.get('format')}', of which coldpress reads "
            f"{', '.join((FORMAT, *_INTEGERS))}",
            hint="start from the unquantized model",
        )
    return {
        **{module: _linear(module, tensors, _scheme(module, config)) for module in packed},
        **{module: _integer_linear(module, tensors, _scheme(module, config)) for module in integers},
    }


def _scheme(module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``weights`` entry for a module: a target that names it goes before one that names its class."""
    by_class = None
    for group in config.get("config_groups", {}).values():
        for target in group["targets"]:
            if target == module or (target.startswith("re:") and re.match(target[3:], module)):
                return group["weights"]
            by_class = by_class or (None if target.startswith("re:") or "." in target else group["weights"])
    if by_class is None:
        raise ColdpressError(f"'{module}' is packed, but no config group of its quantization_config targets it")
    return by_class


def _group_size(module: str, scheme: Mapping[str, Any], columns: int) -> int:
    """How many weights of a row share a scale; all of them where the scheme knows no groups."""
    size = int(scheme.get("group_size") or -1)
    if size < 1 and scheme.get("strategy") == "group":
        raise ColdpressError(f"'{module}' is packed in groups, but its quantization_config has group_size {size}")
    return columns if size < 1 else size


def _linear(module: str, tensors: Mapping[str, Span], scheme: Mapping[str, Any]) -> CompressedLinear:
    found = {part: tensors.get(f"{module}.{part}") for part in PARTS}
    words, scales, shape = (found[part] for part in PARTS[:3])
    if words is None or scales is None or shape is None:
        raise ColdpressError(f"'{module}' lacks one of weight_packed, weight_scale, weight_shape")
    rows, columns = (int(length) for length in shape.view())
    bits, group_size = int(scheme["num_bits"]), _group_size(module, scheme, columns)
    zero_points = None if scheme.get("symmetric", True) else found["weight_zero_point"]
    _check(module, (words, scales), (rows, columns), bits)
    if not scheme.get("symmetric", True) and zero_points is None:
        raise ColdpressError(f"'{module}' has no weight_zero_point, though its scheme is asymmetric")
    order = found["weight_g_idx"]
    groups = None if order is None else groups_out_of_order(order.view(), group_size)
    return CompressedLinear(module, rows, columns, bits, group_size, groups, scales, words, zero_points)


def _integer_linear(module: str, tensors: Mapping[str, Span], scheme: Mapping[str, Any]) -> IntegerLinear:
    weight, scales = tensors[f"{module}.weight"], tensors.get(f"{module}.weight_scale")
    if scales is None or len(weight.shape) != 2:
        raise ColdpressError(f"'{module}.weight' is int8 {list(weight.shape)} and has no weight_scale, or is no matrix")
    zeros = None if scheme.get("symmetric", True) else tensors.get(f"{module}.weight_zero_point")
    if zeros is None and not scheme.get("symmetric", True):
        raise ColdpressError(f"'{module}' has no weight_zero_point, though its scheme is asymmetric")
    (rows, columns), groups = weight.shape, scales.shape[1] if len(scales.shape) == 2 else 1
    size = _group_size(module, scheme, columns)
    if -(-columns // size) != groups:
        raise ColdpressError(
            f"'{scales.name}' is {list(scales.shape)}; groups of {size} of {columns} weights need others"
        )
    spread = [span if span is None else _for_each_row(span, rows, groups) for span in (scales, zeros)]
    order = tensors.get(f"{module}.weight_g_idx")
    column_groups = None if order is None else groups_out_of_order(order.view(), size)
    return IntegerLinear(
        module, rows, columns, int(scheme["num_bits"]), size, column_groups, spread[0] or scales, weight, spread[1]
    )


def _for_each_row(span: Span, rows: int, groups: int) -> Span:
    """Scales of rows, or one for all of them, as ``[rows, groups]``."""
    if span.shape == (rows, groups):
        return span
    if math.prod(span.shape) != 1:
        raise ColdpressError(f"'{span.name}' is {list(span.shape)}; coldpress reads one, or [{rows}, groups]")
    return replace(span, shape=(rows, 1), strides=(0, 0))


def _check(module: str, stored: tuple[Span, Span], shape: tuple[int, int], bits: int) -> None:
    (rows, columns), (words, scales) = shape, stored
    widths = (words_for(columns, bits), -(-columns // (32 // bits)))
    if len(words.shape) != 2 or words.shape[0] != rows or words.shape[1] not in widths:
        raise ColdpressError(
            f"'{module}.weight_packed' is {list(words.shape)}; {rows} x {columns} weights of {bits} bits are "
            f"[{rows}, {widths[0]}]"
        )
    if len(scales.shape) != 2 or scales.shape[0] != rows:
        raise ColdpressError(
            f"'{module}.weight_scale' is {list(scales.shape)}; coldpress reads one row of scales a row"
        )
