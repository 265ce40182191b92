"""Parameters that a module has only while it runs: read, or cast to float32, just before, and dropped just after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

_HEAD_ROWS = 8192


class Tensors(Protocol):
    """Tensors by name, in any float type: of files, or of a network that was loaded."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        ...

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of a tensor in float32."""
        ...


def load_while_running(module: Any, tensors: Tensors, keys: Mapping[str, str], around: Any = None) -> None:
    """Give a module real parameters for as long as its forward runs, or that of the module ``around`` it.

    ``keys``: its parameter -> name in ``tensors``.
    """
    from torch import nn

    empty = dict(module._parameters)

    def load(_: Any, args: tuple[Any, ...]) -> None:
        for local, key in keys.items():
            tensor = tensors.tensor(key)
            looks_up = isinstance(module, nn.Embedding) and bool(args) and around is None
            values = _looked_up_rows(tensor, args[0]) if looks_up else tensor.float()
            module._parameters[local] = nn.Parameter(values, requires_grad=False)

    def drop(_: Any, _args: Any, _output: Any) -> None:
        module._parameters.update(empty)

    runs = module if around is None else around
    runs.register_forward_pre_hook(load)
    runs.register_forward_hook(drop, always_call=True)


def _looked_up_rows(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """A float32 table of which only the rows that ``ids`` ask for are filled; the others take no memory."""
    import torch

    if table.dtype == torch.float32:
        return table
    rows = ids.unique()
    filled = torch.empty(table.shape, dtype=torch.float32)
    filled[rows] = table[rows].float()
    return filled


def is_plain_linear(module: Any) -> bool:
    from torch import nn

    return type(module) is nn.Linear


def apply_in_slices(head: Any, tensors: Tensors, keys: Mapping[str, str]) -> None:
    """Let the head run slice by slice: no float32 copy of the vocabulary's matrix exists."""
    import torch

    def forward(states: torch.Tensor) -> torch.Tensor:
        count = tensors.shape(keys["weight"])[0]
        bias = tensors.tensor(keys["bias"]).float() if "bias" in keys else None
        logits = torch.empty(*states.shape[:-1], count, dtype=torch.float32)
        for start in range(0, count, _HEAD_ROWS):
            part = slice(start, start + _HEAD_ROWS)
            weight = tensors.rows(keys["weight"], start, start + _HEAD_ROWS)
            logits[..., part] = torch.nn.functional.linear(states, weight, None if bias is None else bias[part])
        return logits

    head.forward = forward
