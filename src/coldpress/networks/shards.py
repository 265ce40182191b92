"""The tensors of a Hugging Face folder as torch has them, for what runs or changes a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.models.checkpoint import Checkpoint
from coldpress.models.packed.folder import packing_tensors, read_packed
from coldpress.models.packed.linear import PackedLinear

if TYPE_CHECKING:
    import torch


class Shards:
    """The tensors of a folder's safetensors files by name, memory-mapped; those of quantized layers as their values."""

    def __init__(self, folder: Path):
        from safetensors import safe_open

        stored, linears = Checkpoint(folder).tensors, read_packed(folder)
        self._packed = {f"{module}.weight": linear for module, linear in linears.items()}
        hidden = packing_tensors(folder, linears) | set(self._packed)
        files: dict[str, Any] = {file: safe_open(file, framework="pt") for file in {s.file for s in stored.values()}}
        self._home: dict[str, Any] = {name: files[span.file] for name, span in stored.items() if name not in hidden}

    @property
    def has_packed(self) -> bool:
        return bool(self._packed)

    def names(self) -> list[str]:
        return [*self._home, *self._packed]

    def shape(self, name: str) -> tuple[int, ...]:
        if linear := self._packed.get(name):
            return linear.rows, linear.columns
        return tuple(self._home[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The type a tensor is stored in, as torch calls it."""
        return "float32" if name in self._packed else str(self.tensor(name).dtype).removeprefix("torch.")

    def tensor(self, name: str) -> torch.Tensor:
        """The stored tensor, as a view of the mapped file; a packed one is computed."""
        if linear := self._packed.get(name):
            return _values(linear, 0, linear.rows)
        tensor: torch.Tensor = self._home[name].get_tensor(name)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of a tensor in float32."""
        if linear := self._packed.get(name):
            return _values(linear, start, min(stop, linear.rows))
        return self.tensor(name)[start:stop].float()


def _values(linear: PackedLinear, start: int, stop: int) -> torch.Tensor:
    import torch

    return torch.from_numpy(linear.dequantized(start, stop))
