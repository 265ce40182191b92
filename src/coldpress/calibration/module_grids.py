"""Which grid each module of a network gets: bits, groups, exceptions by globs over module names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coldpress.errors import ColdpressError
from coldpress.quant.grid import Grid

PRECISIONS = ("int4", "int8", "int3", "int2")
_HEAD = "lm_head"
_PROMOTED_BITS = 8
_DOWN, _VALUES = ("down_proj", "fc2", "dense_4h_to_h", "c_proj"), ("v_proj", "qkv_proj")


@dataclass(frozen=True)
class ModuleGrids:
    """``symmetric``: None is for 8 bits only.

    ``form``: of the checkpoint. ``floats``: globs of modules that stay float.

    ``overrides``: GLOB=PRECISION, the first that matches counts. ``is_strict``: a glob has to match something.

    ``promote``: which modules get 8 bits by their places, unless an override says otherwise; see `promoted`.
    """

    bits: int
    group_size: int
    symmetric: bool | None
    scale_dtype: str
    form: str
    floats: Sequence[str]
    overrides: Sequence[str]
    is_strict: bool = True
    promote: str | None = None

    def stays_float(self, module: str) -> bool:
        return any(fnmatch.fnmatchcase(module, pattern) for pattern in self.floats)

    def has_override(self, module: str) -> bool:
        return any(fnmatch.fnmatchcase(module, override.partition("=")[0]) for override in self.overrides)

    def check(self) -> None:
        """Raise ColdpressError for an override that cannot be read."""
        self._bits_of("")

    def of(self, shapes: Mapping[str, tuple[int, int]], routers: Sequence[str] = ()) -> dict[str, Grid]:
        """The grid of every module that is quantized; globs that match nothing are refused.

        ``routers``: modules that stay float whatever is asked.
        """
        globs = [(pattern, routers) for pattern in self.floats]
        for pattern, others in [*globs, *((override.partition("=")[0], ()) for override in self.overrides)]:
            if self.is_strict and not fnmatch.filter([*shapes, *others, _HEAD], pattern):
                raise ColdpressError(
                    f"'{pattern}' matches no linear layer of this model",
                    hint="it is a glob over whole names, such as '*.v_proj'",
                )
        quantized = {name: columns for name, (_, columns) in shapes.items() if not self.stays_float(name)}
        if not quantized:
            raise ColdpressError("every layer stays float, so nothing is left to quantize")
        more = promoted(self.promote, quantized) if self.promote else set()
        bits = {name: _PROMOTED_BITS for name in more if not self.has_override(name)}
        return {name: self.grid(name, columns, bits.get(name)) for name, columns in quantized.items()}

    def grid(self, module: str, columns: int, bits: int | None = None) -> Grid:
        """The grid of a module, with its own bits or those given."""
        bits = bits or self._bits_of(module)
        if columns % self.group_size:
            fitting = [size for size in (128, 64, 32, 16) if columns % size == 0]
            raise ColdpressError(
                f"'{module}' has {columns} inputs, which groups of {self.group_size} do not divide; "
                f"a {self.form} checkpoint cannot pad them",
                hint=f"use --group_size {fitting[0]}" if fitting else f"use --modules_to_not_convert '{module}'",
            )
        return Grid(bits, self.group_size, bits == 8 if self.symmetric is None else self.symmetric, self.scale_dtype)

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
        return int(found.removeprefix("int")) if found else self.bits


def promoted(which: str, modules: Iterable[str]) -> set[str]:
    """The modules that llama.cpp's mixtures of k-quants give more bits, among these.

    ``last``: the head. ``down``: and the products that end an MLP, in the first and last eighth of the layers and in
    every third one between. ``mixed``: and the projections to values in the same layers. (llama.cpp,
    ``use_more_bits`` in src/llama-quant.cpp.)
    """
    names, found = list(modules), {_HEAD}
    ends = {"last": (), "down": _DOWN, "mixed": (*_DOWN, *_VALUES)}[which]
    layers = {name: int(number[1]) for name in names if (number := re.search(r"\.(\d+)\.", name))}
    count = max(layers.values(), default=-1) + 1
    chosen = layers_with_more_bits(count)
    found |= {name for name, layer in layers.items() if layer in chosen and name.rpartition(".")[2] in ends}
    return found.intersection(names)


def layers_with_more_bits(count: int) -> set[int]:
    """The first and last eighth of so many layers, and every third between."""
    eighth = count // 8
    return {one for one in range(count) if one < eighth or one >= 7 * count // 8 or (one - eighth) % 3 == 2}


def promoting_globs(which: str, layers: int) -> list[str]:
    """The same modules as globs over their names, in a network of so many layers; without the head."""
    ends = {"down": _DOWN, "mixed": (*_DOWN, *_VALUES)}[which]
    return [f"*.{layer}.*.{end}" for layer in sorted(layers_with_more_bits(layers)) for end in ends]
