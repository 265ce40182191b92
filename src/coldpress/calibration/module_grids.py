"""Which grid each module of a network gets: bits, groups, exceptions by globs over module names."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coldpress.errors import ColdpressError
from coldpress.quant.grid import Grid

PRECISIONS = ("int4", "int8", "int3", "int2")
_HEAD = "lm_head"


@dataclass(frozen=True)
class ModuleGrids:
    """``symmetric``: None is for 8 bits only.

    ``form``: of the checkpoint. ``floats``: globs of modules that stay float.

    ``overrides``: GLOB=PRECISION, the first that matches counts. ``is_strict``: a glob has to match something.
    """

    bits: int
    group_size: int
    symmetric: bool | None
    scale_dtype: str
    form: str
    floats: Sequence[str]
    overrides: Sequence[str]
    is_strict: bool = True

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
        return {name: self.grid(name, columns) for name, columns in quantized.items()}

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
