"""What a graph is fed with for calibration: windows of token ids, or batches of any data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from coldpress.errors import ColdpressError
from coldpress.graphs.signature import empty_cache
from coldpress.models.onnx_folder import read_genai_config

Feed = dict[str, Any]
_TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")


@dataclass(frozen=True)
class Inputs:
    """The inputs of a graph that must be fed: name -> (type, sizes, None for those left open)."""

    folder: Path
    wanted: Mapping[str, tuple[ir.DataType, tuple[int | None, ...]]]

    @classmethod
    def of(cls, graph: ir.Graph, folder: Path) -> Inputs:
        must = [value for value in graph.inputs if not value.is_initializer()]
        return cls(folder, {str(value.name): (value.dtype, _sizes(value)) for value in must})

    @property
    def takes_text(self) -> bool:
        """Whether token ids and what follows from them are all that is wanted."""
        return "input_ids" in self.wanted and all(name in _TOKEN_INPUTS or _is_past(name) for name in self.wanted)

    def of_windows(self, windows: np.ndarray) -> Iterator[Feed]:
        """Feeds of one window each, for token ids int64 ``[windows, tokens]``."""
        fixed = self.wanted["input_ids"][1][-1:]
        if fixed not in ((None,), (windows.shape[1],)):
            raise ColdpressError(
                f"the graph takes exactly {fixed[0]} tokens, the calibration windows have {windows.shape[1]}",
                hint=f"use --max_seq_len {fixed[0]}",
            )
        for window in windows:
            count = len(window)
            tokens = {
                "input_ids": window,
                "attention_mask": np.ones(count),
                "position_ids": np.arange(count),
                "token_type_ids": np.zeros(count),
            }
            yield {
                name: self.empty(name) if _is_past(name) else tokens[name][None].astype(_numpy(dtype))
                for name, (dtype, _) in self.wanted.items()
            }

    def of_samples(self, batches: Iterable[Mapping[str, np.ndarray]], what: str) -> Iterator[Feed]:
        """Feeds of one sample each from batches, name of an input -> array ``[samples, ...]``.

        Caches of keys and values that a batch does not name are empty. ``what`` the batches are, for an error.
        """
        for batch in batches:
            missing = [name for name in self.wanted if name not in batch and not _is_past(name)]
            if missing:
                raise ColdpressError(
                    f"{what} has no array '{missing[0]}'; found: {', '.join(batch) or 'none'}",
                    hint=f"the graph's inputs are {', '.join(self.wanted)}",
                )
            for sample in range(len(next(iter(batch.values())))):
                yield {
                    name: batch[name][sample : sample + 1].astype(_numpy(dtype)) if name in batch else self.empty(name)
                    for name, (dtype, _) in self.wanted.items()
                }

    def empty(self, name: str) -> Any:
        """A cache of keys or values without positions, ``[1, heads, 0, size]``, as an OrtValue."""
        dtype, sizes = self.wanted[name]
        try:
            return empty_cache(name, dtype.value, sizes, read_genai_config(self.folder))
        except ColdpressError as error:
            raise ColdpressError(error.message, hint=_HINT) from error


_HINT = "use --algorithm kquant, which needs no data"


def _is_past(name: str) -> bool:
    return name.startswith("past")


def _numpy(dtype: ir.DataType) -> np.dtype:
    return np.dtype(dtype.numpy())


def _sizes(value: ir.Value) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in value.shape or ())
