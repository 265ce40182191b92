"""The GPTQ format of AutoGPTQ and GPTQModel: writing and reading.

A module with K inputs and N outputs has ``qweight`` int32 ``[K * bits / 32, N]``, packed along K; ``qzeros`` int32
``[groups, N * bits / 32]``, packed along N; ``scales [groups, N]`` and ``g_idx`` int32 ``[K]``, the group of each
column. ``checkpoint_format`` "gptq" (v1) stores each zero point minus one, "gptq_v2" as it is.

In v1 a zero point of 0 has no safe form: kernels differ on whether the field of ones that stands for -1 comes back
as 0 or as ``2**bits``, and GPTQModel adds and subtracts the ones of all fields of a word at once, so that they carry
over. It is therefore never written; what GPTQModel wrote is read as GPTQModel does, everything else field by field.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Span, as_float32
from coldpress.models.packed.compressed_tensors import stored_scales, unpadded
from coldpress.models.packed.linear import PackedLinear, StoredRows, groups_out_of_order
from coldpress.models.packed.patterns import patterns_for
from coldpress.models.packed.words import Words, pack_words, unpack_across, unpack_words, words_for
from coldpress.quant.grid import Bytes, Codes, Grid

METHOD = "gptq"
V1, V2 = "gptq", "gptq_v2"
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def tensors_of(
    module: str, codes: Codes, columns: int, checkpoint_format: str = V1, scale_dtype: str = "float16"
) -> dict[str, NDArray[Any]]:
    """The tensors of one linear layer with ``columns`` inputs; loaders expect float16 scales.

    Raises ColdpressError where K or N is no multiple of 32, or a zero point of 0 meets v1.
    """
    flat, grid = unpadded(module, codes, columns, METHOD), codes.grid
    rows = len(flat)
    if rows % 32 or columns % 32:
        raise ColdpressError(
            f"'{module}' is {rows} x {columns}; GPTQ holds multiples of 32 only",
            hint="leave this module unquantized, or write compressed-tensors",
        )
    zeros = np.full((rows, codes.codes.shape[1]), grid.middle, np.uint8)
    if codes.zero_points is not None:
        zeros = codes.zero_points
    if checkpoint_format == V1:
        if not zeros.all():
            raise ColdpressError(
                f"'{module}' has a zero point of 0, which GPTQ's first format cannot hold",
                hint=f"write checkpoint_format '{V2}', or compressed-tensors",
            )
        zeros = zeros - np.uint8(1)
    return {
        f"{module}.qweight": np.ascontiguousarray(pack_words(flat, grid.bits).T),
        f"{module}.qzeros": pack_words(np.ascontiguousarray(zeros.T), grid.bits),
        f"{module}.scales": np.ascontiguousarray(stored_scales(module, codes, scale_dtype).T),
        f"{module}.g_idx": (np.arange(columns) // grid.block_size).astype(np.int32),
    }


def config_of(grids: Mapping[str, Grid], ignore: Sequence[str] = (), checkpoint_format: str = V1) -> dict[str, Any]:
    """The ``quantization_config`` for config.json; modules off the commonest grid, or ignored, under ``dynamic``.

    GPTQModel and vLLM read ``dynamic``; transformers and AutoGPTQ want one grid on every linear layer of the blocks.
    """
    usual = Counter(grids.values()).most_common(1)[0][0]
    dynamic: dict[str, dict[str, Any]] = {}
    for grid in dict.fromkeys(grids.values()):
        if grid != usual:
            own = [module for module, of_module in grids.items() if of_module == grid]
            patterns = patterns_for(own, [module for module in grids if grids[module] != grid])
            dynamic.update({f"+:{pattern}": _settings(grid) for pattern in patterns})
    left = [module for module in ignore if module.rpartition(".")[2] != "lm_head"]
    dynamic.update({f"-:{pattern}": {} for pattern in patterns_for(left, grids)})
    return {
        "quant_method": METHOD,
        "checkpoint_format": checkpoint_format,
        **_settings(usual),
        "desc_act": False,
        "lm_head": any(module.rpartition(".")[2] == "lm_head" for module in grids),
        **({"dynamic": dynamic} if dynamic else {}),
    }


def _settings(grid: Grid) -> dict[str, Any]:
    return {"bits": grid.bits, "group_size": grid.block_size, "sym": grid.symmetric}


@dataclass(frozen=True, eq=False)
class GptqLinear(PackedLinear):
    """A linear layer of a GPTQ checkpoint. ``zero_points_as``: "plain", "less one", or "words less one" (GPTQModel)."""

    words: Span
    zeros: Span
    zero_points_as: str

    @cached_property
    def symmetric(self) -> bool:
        """Whether every stored zero point is the middle code; the config's ``sym`` is not believed."""
        return bool((self._zero_points(0, self.rows) == 1 << (self.bits - 1)).all())

    def stored(self, start: int, stop: int) -> StoredRows:
        codes = unpack_words(self.words.view()[:, start:stop].T, self.bits, self.columns)
        scales = as_float32(np.ascontiguousarray(self.scales.view()[:, start:stop].T), self.scales.dtype)
        return StoredRows(codes, scales, self._zero_points(start, stop))

    def _zero_points(self, start: int, stop: int) -> Bytes:
        words: Words = self.zeros.view()
        if self.zero_points_as == "words less one":
            ones = np.uint32(sum(1 << place for place in range(0, 32, self.bits)))
            words = (words.view("<u4") + ones).view("<i4")
        zeros = unpack_across(words, self.bits, start, stop)
        if self.zero_points_as == "less one":
            zeros = (zeros + np.uint8(1)) & np.uint8((1 << self.bits) - 1)
        return zeros


def linears_in(tensors: Mapping[str, Span], config: Mapping[str, Any]) -> dict[str, PackedLinear]:
    """The quantized linear layers among ``tensors``, which ``config`` (the ``quantization_config``) describes."""
    if _format(config) not in (V1, V2):
        raise ColdpressError(
            f"this GPTQ checkpoint has the format '{_format(config)}'; coldpress reads '{V1}' and '{V2}'",
            hint="start from the unquantized model",
        )
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return {module: _linear(module, tensors, config) for module in modules}


def _linear(module: str, tensors: Mapping[str, Span], config: Mapping[str, Any]) -> GptqLinear:
    try:
        words, zeros, scales = (tensors[f"{module}.{part}"] for part in PARTS[:3])
    except KeyError as error:
        raise ColdpressError(f"tensor {error} is missing; '{module}' has a qweight") from error
    settings = _settings_of(module, config)
    order = tensors.get(f"{module}.g_idx")
    bits = int(settings["bits"])
    columns = words.shape[0] * 32 // bits if order is None else order.shape[0]
    rows, group_size = words.shape[1], int(settings.get("group_size", -1))
    group_size = columns if group_size < 1 else group_size
    groups = -(-columns // group_size)
    expected = [(words_for(columns, bits), rows), (groups, words_for(rows, bits)), (groups, rows)]
    for span, shape in zip((words, zeros, scales), expected, strict=True):
        if span.shape != shape:
            raise ColdpressError(
                f"'{span.name}' is {list(span.shape)}; {bits} bits in groups of {group_size} make it {list(shape)}"
            )
    out_of_order = None if order is None else groups_out_of_order(order.view(), group_size)
    stored_as = _zero_points_as(config, bits)
    return GptqLinear(module, rows, columns, bits, group_size, out_of_order, scales, words, zeros, stored_as)


def _settings_of(module: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one module: those of the checkpoint, with the first entry of ``dynamic`` that matches."""
    for pattern, changes in (config.get("dynamic") or {}).items():
        if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), module):
            return {**config, **changes}
    return dict(config)


def _format(config: Mapping[str, Any]) -> str:
    # AutoGPTQ wrote "checkpoint_format"; transformers and newer GPTQModels write "format"
    return str(config.get("checkpoint_format") or config.get("format") or V1)


def _zero_points_as(config: Mapping[str, Any], bits: int) -> str:
    if _format(config) == V2:
        return "plain"
    writers = str((config.get("meta") or {}).get("quantizer", ""))
    return "words less one" if "gptqmodel" in writers.lower() and bits != 3 else "less one"
